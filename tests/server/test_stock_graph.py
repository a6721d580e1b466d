import io

import pytest
from host.client import Client, Graph
from PIL import Image

pytestmark = pytest.mark.server


def test_second_run_of_a_graph_is_cached(client: Client):
    graph = Graph()
    image = graph.add("EmptyImage", width=32, height=16, batch_size=1, color=0xFF8000)
    preview = graph.add("PreviewImage", images=image[0])

    first, second = client.run(graph), client.run(graph)

    assert (first.status, first.executed, first.cached) == ("success", [image.id, preview.id], [])
    assert (second.status, second.executed, second.cached) == ("success", [], [image.id, preview.id])
    for run in (first, second):
        [item] = run.images(preview)
        picture = Image.open(io.BytesIO(client.image(item)))
        assert (picture.size, picture.getpixel((0, 0))) == ((32, 16), (255, 128, 0))
