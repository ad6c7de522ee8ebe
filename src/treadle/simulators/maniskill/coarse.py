# ManiSkill is in an environment of its own.
# pyright: reportMissingImports=false

"""ManiSkill's scenes with fewer triangles: a Panda arm has 135 thousand, the floor of its table scenes 20 thousand."""

from typing import Any

import numpy as np
import sapien
from numpy.typing import NDArray

from treadle.simulators.coarse import coarsen

_FEW = 1000
"""Triangles of a mesh that stays as it is."""
_FLOOR = 10.0
"""Metres; what is longer lies behind everything, and its cells are a sixteenth of it."""


_shapes: dict[tuple[Any, ...], list[Any]] = {}
"""What replaces the mesh of a file, at a scale, with its materials, for a size of cells; all scenes share it."""


def coarsen_scene(scene: Any, cell: float) -> None:
    """Replace the meshes that are seen in a SAPIEN scene by ones without details smaller than `cell` metres. What
    collides stays as it is.
    """
    for entity in scene.entities:
        for body in entity.components:
            if isinstance(body, sapien.render.RenderBodyComponent) and any(map(_is_large, body.render_shapes)):
                coarse = sapien.render.RenderBodyComponent()
                for shape in body.render_shapes:
                    for replaced in _replace(shape, cell) if _is_large(shape) else [shape.clone()]:
                        replaced.local_pose = shape.local_pose
                        coarse.attach(replaced)
                coarse.visibility = body.visibility
                entity.remove_component(body)
                entity.add_component(coarse)


def _is_large(shape: Any) -> bool:
    if not isinstance(shape, sapien.render.RenderShapeTriangleMesh):
        return False
    return sum(len(part.triangles) for part in shape.parts) > _FEW


def _replace(shape: Any, cell: float) -> list[Any]:
    scale = np.asarray(shape.scale)
    if not shape.filename:
        return [_part(part, scale, cell) for part in shape.parts]
    key = (shape.filename, scale.tobytes(), cell, *(_look(part.material) for part in shape.parts))
    if key not in _shapes:
        _shapes[key] = [_part(part, scale, cell) for part in shape.parts]
    return [coarse.clone() for coarse in _shapes[key]]


def _look(material: Any) -> tuple[Any, ...]:
    texture = material.base_color_texture
    return (*material.base_color, material.metallic, material.roughness, texture and texture.filename)


def _part(part: Any, scale: NDArray[np.float32], cell: float) -> Any:
    vertices, triangles = np.array(part.vertices) * scale, np.array(part.triangles)
    normals, uv = np.array(part.get_vertex_normal()), np.array(part.get_vertex_uv())
    extent = float(np.ptp(vertices, axis=0).max())
    places, kept = coarsen(vertices, triangles, extent / 16 if extent > _FLOOR else cell)
    textured = part.material.base_color_texture is not None and extent <= _FLOOR
    # A textured corner keeps its own place in the texture; others are one where they look in about the same direction.
    own = np.arange(len(vertices)) if textured else (np.sign(normals) @ [9, 3, 1]).astype(np.intp)
    _, first, number = np.unique(
        np.stack([places[triangles[kept]].ravel(), own[triangles[kept]].ravel()], 1),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    corner = triangles[kept].ravel()[first]
    source = corner if textured else places[corner]
    return sapien.render.RenderShapeTriangleMesh(
        vertices[places[corner]].astype(np.float32),
        number.reshape(-1, 3).astype(np.uint32),
        normals[corner].astype(np.float32),
        uv[source].astype(np.float32) if len(uv) == len(vertices) else np.zeros((0, 2), np.float32),
        part.material,
    )
