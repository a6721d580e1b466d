"""Outlines of the buildings and the vehicles."""

from __future__ import annotations

from lab.world.outlines import (
    BEAK,
    BODY,
    CREAM,
    DARK,
    GLASS,
    GOLD,
    INK,
    LIGHT,
    PALE,
    SHADE,
    STEEL,
    WHITE,
    WOOD,
    Kind,
    Layer,
    both,
    box,
    dome,
    ellipse,
    fixed,
    plain,
    polygon,
    smooth,
    stroke,
)

STONE = fixed(0.60, 0.59, 0.62)
ROOF = fixed(0.47, 0.31, 0.30)


def window(x: float, y: float, half: float) -> tuple[Layer, ...]:
    return (
        box(GLASS, x - half, y - half, x + half, y + half),
        plain(box(WHITE, x - 0.025, y - half, x + 0.025, y + half)),
        plain(box(WHITE, x - half, y - 0.025, x + half, y + 0.025)),
    )


def wheel(x: float, y: float, radius: float) -> tuple[Layer, ...]:
    return (
        ellipse(INK, x, y, radius),
        plain(ellipse(STEEL, x, y, radius * 0.52)),
        plain(ellipse(INK, x, y, radius * 0.16)),
    )


HOUSE = Kind(
    (
        box(STONE, 0.36, -0.86, 0.6, -0.3),
        box(BODY, -0.76, -0.1, 0.76, 1.0),
        plain(box(SHADE, -0.72, -0.04, 0.72, 0.1)),
        polygon(ROOF, (0.0, -0.98), (0.98, 0.0), (0.86, 0.08), (-0.86, 0.08), (-0.98, 0.0)),
        polygon(BODY, (0.0, -0.62), (0.4, -0.16), (-0.4, -0.16)),
        plain(ellipse(GLASS, 0.0, -0.32, 0.12)),
        box(WOOD, -0.18, 0.42, 0.18, 1.0),
        plain(ellipse(GOLD, 0.1, 0.72, 0.045)),
        *window(-0.48, 0.42, 0.17),
        *window(0.48, 0.42, 0.17),
        plain(box(STONE, -0.8, 0.94, 0.8, 1.0)),
    )
)


def _battlements(left: float, right: float, top: float, bottom: float, teeth: int) -> Layer:
    step = (right - left) / (2 * teeth - 1)
    corners = [(left, bottom)]
    for tooth in range(teeth):
        x = left + 2 * tooth * step
        low = [(x + step, top + 0.13), (x + 2 * step, top + 0.13)] if tooth < teeth - 1 else [(x + step, top + 0.13)]
        corners += [(x, top), (x + step, top), *low]
    return polygon(BODY, *corners, (right, bottom))


CASTLE = Kind(
    (
        _battlements(-0.28, 0.28, -0.62, 0.4, 3),
        _battlements(-0.6, 0.6, -0.04, 1.0, 5),
        _battlements(-0.96, -0.5, -0.36, 1.0, 3),
        _battlements(0.5, 0.96, -0.36, 1.0, 3),
        *both(polygon(DARK, (-0.73, -0.96), (-0.46, -0.34), (-1.0, -0.34))),
        stroke(WOOD, 0.05, (0.0, -0.6), (0.0, -1.0)),
        polygon(GOLD, (0.02, -0.99), (0.36, -0.88), (0.02, -0.76)),
        *(
            plain(s)
            for s in both(smooth(INK, (-0.73, -0.16), (-0.66, -0.06), (-0.66, 0.16), (-0.8, 0.16), (-0.8, -0.06)))
        ),
        plain(smooth(INK, (0.0, -0.38), (0.07, -0.28), (0.07, -0.08), (-0.07, -0.08), (-0.07, -0.28))),
        *(
            plain(box(SHADE, x, y, x + 0.16, y + 0.08))
            for x, y in ((-0.42, 0.26), (0.24, 0.2), (-0.88, 0.5), (-0.7, 0.74), (0.6, 0.46), (0.76, 0.72))
        ),
        smooth(WOOD, (-0.25, 1.0), (-0.25, 1.0), (-0.25, 0.6), (0.0, 0.36), (0.25, 0.6), (0.25, 1.0), (0.25, 1.0)),
        *(plain(box(INK, x - 0.015, 0.5, x + 0.015, 1.0)) for x in (-0.1, 0.1)),
    )
)


def _sail(dx: float, dy: float) -> tuple[Layer, ...]:
    """A blade of a windmill from its hub towards (dx, dy)."""
    x, y, hub = -dy, dx, -0.36

    def at(along: float, across: float) -> tuple[float, float]:
        return along * dx + across * x, hub + along * dy + across * y

    return (
        polygon(CREAM, at(0.22, 0.03), at(0.86, 0.03), at(0.86, 0.24), at(0.22, 0.2)),
        *(plain(stroke(WOOD, 0.035, at(a, 0.03), at(a, 0.22))) for a in (0.42, 0.62)),
        stroke(WOOD, 0.06, at(0.0, 0.0), at(0.88, 0.0)),
    )


WINDMILL = Kind(
    (
        polygon(BODY, (-0.26, -0.34), (0.26, -0.34), (0.46, 1.0), (-0.46, 1.0)),
        plain(polygon(SHADE, (0.1, -0.3), (0.24, -0.3), (0.42, 0.97), (0.18, 0.97))),
        plain(polygon(LIGHT, (-0.33, 0.36), (0.35, 0.36), (0.37, 0.48), (-0.35, 0.48))),
        dome(DARK, 0.0, -0.32, 0.34, 0.34),
        *window(0.0, 0.14, 0.1),
        smooth(WOOD, (-0.15, 1.0), (-0.15, 1.0), (-0.15, 0.7), (0.0, 0.58), (0.15, 0.7), (0.15, 1.0), (0.15, 1.0)),
        *(layer for direction in ((0.6, -0.8), (0.8, 0.6), (-0.6, 0.8), (-0.8, -0.6)) for layer in _sail(*direction)),
        ellipse(GOLD, 0.0, -0.36, 0.1),
    )
)

CAR = Kind(
    (
        smooth(
            BODY,
            (-0.98, 0.52),
            (-0.98, 0.52),
            (-0.98, 0.18),
            (-0.7, 0.02),
            (-0.56, -0.02),
            (-0.34, -0.42),
            (-0.1, -0.5),
            (0.3, -0.5),
            (0.52, -0.4),
            (0.72, -0.02),
            (0.94, 0.08),
            (1.0, 0.52),
            (1.0, 0.52),
        ),
        smooth(
            GLASS,
            (-0.42, -0.04),
            (-0.42, -0.04),
            (-0.26, -0.36),
            (-0.02, -0.39),
            (-0.02, -0.39),
            (-0.02, -0.04),
            (-0.02, -0.04),
        ),
        smooth(
            GLASS,
            (0.08, -0.04),
            (0.08, -0.04),
            (0.08, -0.39),
            (0.08, -0.39),
            (0.38, -0.36),
            (0.56, -0.04),
            (0.56, -0.04),
        ),
        plain(box(SHADE, -0.94, 0.3, 0.97, 0.5)),
        plain(stroke(DARK, 0.04, (0.03, 0.0), (0.03, 0.46))),
        plain(stroke(DARK, 0.06, (0.12, 0.1), (0.24, 0.1))),
        ellipse(GOLD, -0.89, 0.2, 0.09, 0.1),
        plain(ellipse(fixed(0.82, 0.18, 0.16), 0.93, 0.22, 0.06, 0.1)),
        stroke(STEEL, 0.1, (-0.98, 0.52), (0.98, 0.52)),
        *wheel(-0.54, 0.54, 0.26),
        *wheel(0.54, 0.54, 0.26),
    )
)

BOAT = Kind(
    (
        stroke(WOOD, 0.08, (0.0, 0.6), (0.0, -0.98)),
        smooth(
            WHITE,
            (-0.08, -0.84),
            (-0.08, -0.84),
            (-0.3, -0.2),
            (-0.8, 0.36),
            (-0.8, 0.36),
            (-0.4, 0.4),
            (-0.08, 0.36),
            (-0.08, 0.36),
        ),
        smooth(
            LIGHT,
            (0.08, -0.72),
            (0.08, -0.72),
            (0.44, -0.3),
            (0.66, 0.3),
            (0.66, 0.3),
            (0.36, 0.36),
            (0.08, 0.32),
            (0.08, 0.32),
        ),
        plain(
            smooth(
                BODY,
                (-0.08, -0.2),
                (-0.08, -0.2),
                (-0.34, -0.14),
                (-0.52, 0.08),
                (-0.3, 0.14),
                (-0.08, 0.1),
                (-0.08, 0.1),
            )
        ),
        polygon(BODY, (0.02, -1.0), (0.34, -0.9), (0.02, -0.8)),
        smooth(
            BODY,
            (-0.96, 0.46),
            (-0.96, 0.46),
            (-0.4, 0.54),
            (0.4, 0.54),
            (0.98, 0.44),
            (0.98, 0.44),
            (0.8, 0.84),
            (0.6, 1.0),
            (-0.56, 1.0),
            (-0.8, 0.8),
        ),
        plain(smooth(SHADE, (-0.78, 0.8), (0.0, 0.84), (0.8, 0.8), (0.58, 0.97), (-0.54, 0.97))),
        plain(stroke(PALE, 0.08, (-0.84, 0.6), (0.0, 0.66), (0.86, 0.58))),
    )
)

ROCKET = Kind(
    (
        smooth(
            BEAK,
            (-0.22, 0.56),
            (-0.26, 0.76),
            (-0.12, 0.84),
            (0.0, 1.0),
            (0.0, 1.0),
            (0.12, 0.84),
            (0.26, 0.76),
            (0.22, 0.56),
        ),
        plain(smooth(GOLD, (-0.12, 0.6), (-0.1, 0.76), (0.0, 0.88), (0.1, 0.76), (0.12, 0.6))),
        *both(smooth(SHADE, (-0.26, 0.04), (-0.6, 0.36), (-0.66, 0.84), (-0.66, 0.84), (-0.46, 0.6), (-0.24, 0.54))),
        smooth(
            BODY,
            (0.0, -1.0),
            (0.0, -1.0),
            (0.28, -0.6),
            (0.36, -0.1),
            (0.24, 0.58),
            (0.24, 0.58),
            (-0.24, 0.58),
            (-0.24, 0.58),
            (-0.36, -0.1),
            (-0.28, -0.6),
        ),
        smooth(
            DARK,
            (0.0, -1.0),
            (0.0, -1.0),
            (0.16, -0.8),
            (0.28, -0.56),
            (0.28, -0.56),
            (0.0, -0.5),
            (-0.28, -0.56),
            (-0.28, -0.56),
            (-0.16, -0.8),
        ),
        plain(smooth(LIGHT, (-0.18, -0.46), (-0.24, -0.1), (-0.16, 0.44), (-0.1, 0.44), (-0.16, -0.1), (-0.1, -0.44))),
        ellipse(WHITE, 0.0, -0.16, 0.21),
        plain(ellipse(fixed(0.42, 0.68, 0.86), 0.0, -0.16, 0.14)),
        plain(ellipse(WHITE, -0.05, -0.21, 0.05)),
        stroke(DARK, 0.1, (0.0, 0.2), (0.0, 0.62)),
        plain(box(STEEL, -0.24, 0.52, 0.24, 0.6)),
    ),
    lift=0.8,
)

BALLOON = Kind(
    (
        *both(stroke(WOOD, 0.04, (-0.3, 0.36), (-0.17, 0.7))),
        stroke(WOOD, 0.03, (0.0, 0.4), (0.0, 0.7)),
        smooth(
            BODY,
            (0.0, -1.0),
            (0.5, -0.84),
            (0.74, -0.4),
            (0.62, 0.06),
            (0.24, 0.44),
            (0.24, 0.44),
            (-0.24, 0.44),
            (-0.24, 0.44),
            (-0.62, 0.06),
            (-0.74, -0.4),
            (-0.5, -0.84),
        ),
        *(
            plain(s)
            for s in both(
                smooth(
                    PALE,
                    (-0.14, -0.96),
                    (-0.14, -0.96),
                    (-0.44, -0.7),
                    (-0.56, -0.36),
                    (-0.44, 0.06),
                    (-0.18, 0.42),
                    (-0.18, 0.42),
                    (-0.09, 0.42),
                    (-0.09, 0.42),
                    (-0.2, 0.02),
                    (-0.26, -0.4),
                    (-0.2, -0.74),
                )
            )
        ),
        plain(
            smooth(
                SHADE,
                (0.4, -0.86),
                (0.66, -0.4),
                (0.56, 0.06),
                (0.22, 0.42),
                (0.3, 0.42),
                (0.62, 0.06),
                (0.72, -0.4),
                (0.52, -0.8),
            )
        ),
        box(DARK, -0.24, 0.38, 0.24, 0.48),
        smooth(
            WOOD, (-0.2, 0.7), (-0.2, 0.7), (-0.15, 1.0), (-0.15, 1.0), (0.15, 1.0), (0.15, 1.0), (0.2, 0.7), (0.2, 0.7)
        ),
        plain(stroke(CREAM, 0.05, (-0.17, 0.8), (0.17, 0.8))),
    ),
    lift=0.8,
)
