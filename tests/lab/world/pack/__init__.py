async def comfy_entrypoint():
    from .nodes import WorldExtension

    return WorldExtension()
