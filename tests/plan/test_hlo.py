"""Communication: what is read from HLO text, written by hand and by XLA."""

import json

from kaleido_jax.plan.hlo import communication

HEADER = "HloModule jit_step, entry_computation_layout={()->f32[]}\n\n"
LOOP = """%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %arg = (s32[], f32[4,8]{1,0}) parameter(0)
  %ag = f32[4,64]{1,0} all-gather(%x), channel_id=1, replica_groups=[1,8]<=[8], dimensions={1}
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%i, %y)
}

%condition (arg.1: (s32[], f32[4,8])) -> pred[] {
  %arg.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(24), metadata={op_name="while"}
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}

"""


def entry(*lines):
    return "ENTRY %main (p: f32[4,8]) -> f32[] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def read(*lines, before=""):
    return communication(HEADER + before + entry(*lines))


def test_each_kind_has_the_bytes_of_the_whole_array():
    found = read(
        "%a = bf16[4,64]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={1}",
        "%b = (f32[8]{0}, f32[2,2]{1,0}) all-reduce(%p, %q), replica_groups={{0,1}}, to_apply=%add",
        "%c = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}",
        "%d = f32[4]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}",
        "%e = f32[4]{0} reduce-scatter(%p), replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}",
        "%f = s8[16]{0} all-to-all(%p), replica_groups=[1,8]<=[8]",
    )
    assert found.bytes_by_collective == {
        "all-gather": 512,
        "all-reduce": 32 + 16,
        "reduce-scatter": 3 * 4 * 16,
        "all-to-all": 16,
        "collective-permute": 0,
    }
    assert found.total_bytes == 512 + 48 + 192 + 16


def test_an_asynchronous_pair_counts_once():
    found = read(
        "%s = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), channel_id=3",
        "%d = f32[4]{0} collective-permute-done(%s)",
        "%g = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}",
        "%h = f32[32]{0} all-gather-done(%g)",
        "%a = ((f32[4,8]{1,0}), f32[4,64]{1,0}, u32[]) async-start(%p), calls=%body",
        "%b = f32[4,64]{1,0} async-done(%a), calls=%body",
        before=LOOP,
    )
    assert (
        found.bytes_by_collective["collective-permute"] == 16 and found.bytes_by_collective["all-gather"] == 128 + 1024
    )
    assert sum(found.count_by_collective.values()) == 3


def test_a_collective_of_several_arrays_has_the_bytes_of_all():
    operands, results = "f32[4]{0:T(128)}, bf16[2,2]{1,0}", "f32[32]{0:T(128)}, bf16[16,2]{1,0:T(8,128)(2,1)}"
    found = read(f"%g = (({operands}), ({results})) all-gather-start(%p, %q), dimensions={{0}}")
    assert found.bytes_by_collective["all-gather"] == 128 + 64


def test_the_body_of_a_loop_counts_for_each_iteration():
    known = 'condition=%other, body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    for tail, times in ((known, 3), ("condition=%condition, body=%body", 24)):
        found = read(f"%w = (s32[], f32[4,8]{{1,0}}) while(%t), {tail}", before=LOOP)
        assert found.count_by_collective["all-gather"] == times and found.unknown_loops == 0
        assert found.bytes_by_collective["all-gather"] == times * 4 * 64 * 4


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    text = LOOP.replace("direction=LT", "direction=NE")
    found = read("%w = (s32[], f32[4,8]{1,0}) while(%t), condition=%condition, body=%body", before=text)
    assert found.count_by_collective["all-gather"] == 1 and found.unknown_loops == 1


def test_what_is_called_counts_at_every_call():
    found = read("%a = f32[] call(%p), to_apply=%body", "%b = f32[] fusion(%p), kind=kCustom, calls=%body", before=LOOP)
    assert found.count_by_collective["all-gather"] == 2


def test_xla_writes_what_is_read(eight_devices):
    source = """
import dataclasses, json, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from kaleido_jax.plan.hlo import communication
mesh = Mesh(np.asarray(jax.devices()), ("fsdp",))
def layers(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()
x, w = jax.ShapeDtypeStruct((64, 32), "float32"), jax.ShapeDtypeStruct((5, 32, 32), "float32")
shardings = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P(None, "fsdp"))
compiled = jax.jit(layers, in_shardings=shardings).lower(x, w).compile()
print(json.dumps(dataclasses.asdict(communication(compiled.as_text()))))
"""
    found = json.loads(eight_devices(source).splitlines()[-1])
    gathered, count = found["bytes_by_collective"]["all-gather"], found["count_by_collective"]["all-gather"]
    assert found["unknown_loops"] == 0 and (gathered, count) in ((5 * 32 * 32 * 4, 5), (5 * 32 * 32 * 4, 1))
    assert found["bytes_by_collective"]["all-reduce"] == 4
