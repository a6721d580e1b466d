WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    # Imported here, not above: pytest imports this file as a bare module, where a relative import fails.
    from .nodes.extension import PalimpsestExtension

    return PalimpsestExtension()
