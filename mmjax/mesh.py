"""Devices -> a mesh with axes (data, fsdp, tensor), and the rules that lay arrays out on it."""

from dataclasses import dataclass, fields

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.error import UserError

AXES = ("data", "fsdp", "tensor")
Axes = str | tuple[str, ...] | None


def make_mesh(data: int, fsdp: int, tensor: int, devices=None) -> Mesh:
    """Builds the mesh; one size may be -1 and takes the devices that are left.

    Axes are Auto: shardings are given at the borders and the compiler does the rest.

    Raises:
        UserError: if the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        rest = int(np.prod([s for s in sizes if s != -1]))
        sizes[sizes.index(-1)] = max(len(devices) // max(rest, 1), 1)
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh (data={data}, fsdp={fsdp}, tensor={tensor}) does not fit {len(devices)} "
            f"device(s); the sizes must multiply to it, and one may be -1 (what is left)"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


@dataclass(frozen=True)
class Rules:
    """Maps the logical axes of arrays to axes of the mesh; another plan is another value.

    A misspelt logical axis is an AttributeError, a mesh axis used twice a ValueError.
    """

    mesh: Mesh
    batch: Axes = ("data", "fsdp")
    length: Axes = None
    embed: Axes = "fsdp"
    heads: Axes = "tensor"
    mlp: Axes = "tensor"
    vocab: Axes = "tensor"
    layers: Axes = None

    def spec(self, *names: str | None) -> P:
        """Logical names, one a dimension (None: not split) -> PartitionSpec."""
        if "mesh" in names:
            raise AttributeError("'mesh' is no logical axis")
        axes = [None if name is None else getattr(self, name) for name in names]
        flat = [a for axis in axes for a in ((axis,) if isinstance(axis, str) else axis or ())]
        if len(set(flat)) != len(flat):
            raise ValueError(f"a mesh axis is used twice: {names} -> {axes}")
        return P(*axes)

    def sharding(self, *names: str | None) -> NamedSharding:
        """Logical names -> NamedSharding on this mesh."""
        return NamedSharding(self.mesh, self.spec(*names))

    def constrain(self, x, *names: str | None):
        """Pins the layout of an activation; used at block borders."""
        return jax.lax.with_sharding_constraint(x, self.sharding(*names))

    def split(self, name: str) -> int:
        """Into how many parts a logical axis is cut."""
        axis = getattr(self, name)
        names = (axis,) if isinstance(axis, str) else axis or ()
        return int(np.prod([self.mesh.shape[a] for a in names], dtype=int))


LOGICAL = tuple(f.name for f in fields(Rules) if f.name != "mesh")


def shardings(mesh: Mesh, specs):
    """Tree of PartitionSpecs -> tree of NamedShardings."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, P))


def abstract(shapes, layout):
    """Trees of shapes and of shardings -> one tree of ShapeDtypeStructs that carry both."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout
    )


def put(batch, rules: Rules):
    """Host batch -> global device arrays, rows split over the mesh; each process gives its rows."""
    sharding = rules.sharding("batch")
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
