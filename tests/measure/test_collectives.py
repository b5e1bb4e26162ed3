import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from m3ddm_jax.measure.collectives import Collective, find_collectives, summarise

# As compilers write them: started and finished apart, groups listed or counted, a loop whose length is known.
HLO = """HloModule jit_f, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %start = ((bf16[2,4]{1,0}), (bf16[8,4]{1,0})) all-gather-start(%x), replica_groups={{0,1,2,3},{4,5,6,7}}
  %done = bf16[8,4]{1,0} all-gather-done(%start)
}

%all-reduce-scatter (x: bf16[512,8]) -> bf16[128,8] {
  %all-reduce.2 = bf16[512,8]{1,0:T(8,128)(2,1)} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = bf16[128,8]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.2, %i, %zero), dynamic_slice_sizes={128,8}
}

%condition (p: (s32[], bf16[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: bf16[2,4]) -> f32[] {
  %loop = (s32[], bf16[8,4]) while(%i), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %scattered = bf16[128,8]{1,0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter
  %halo = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%y), source_target_pairs={{0,1},{1,2}}
  %swap = bf16[4]{0} all-to-all(%z), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a':(2)2, 'b'}
  ROOT %total = (f32[16]{0}, f32[2,2]{1,0}) all-reduce(%a, %b), replica_groups=[2,4]<=[8], to_apply=%add
}
"""


def test_reads_what_compilers_write():
    found = {one.kind: one for one in find_collectives(HLO)}
    assert found == {
        "all-gather": Collective("all-gather", "bf16", ((8, 4),), devices=4, bytes=64, times=6),
        "collective-permute": Collective("collective-permute", "f32", ((3,),), devices=2, bytes=12, times=1),
        "all-to-all": Collective("all-to-all", "bf16", ((4,),), devices=4, bytes=8, times=1),
        "reduce-scatter": Collective("reduce-scatter", "bf16", ((128, 8),), devices=4, bytes=2048, times=1),
        "all-reduce": Collective("all-reduce", "f32", ((16,), (2, 2)), devices=4, bytes=80, times=1),
    }
    assert summarise(list(found.values()))["all-gather bf16 x4"] == {"times": 6, "MiB": 6 * 64 / 2**20}


@pytest.mark.parametrize("loops", [1, 3])
def test_reads_a_compiled_program(loops):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))

    def function(x):
        def add(total, factor):
            return total + jnp.sum(jnp.sin(x * factor + total), axis=0), None

        return jax.lax.scan(add, jnp.zeros(16), jnp.arange(float(loops)))[0]

    hlo = jax.jit(function, out_shardings=NamedSharding(mesh, P())).lower(rows).compile().as_text()
    (found,) = find_collectives(hlo)
    assert (found.kind, found.devices, found.times, found.bytes) == ("all-reduce", 4, loops, 64)
