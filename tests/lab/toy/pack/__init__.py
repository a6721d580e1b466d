async def comfy_entrypoint():
    from .nodes import ToyExtension

    return ToyExtension()
