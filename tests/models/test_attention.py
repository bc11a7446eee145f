"""Attention against `jax.nn.dot_product_attention`, and who carries it out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  NamedSharding,
  PartitionSpec,
)

from dollar_jax.models import attention as attentions
from dollar_jax.models import cpu_attention
from dollar_jax.models.attention import attention, choose
from dollar_jax.models.cogvideox import CogVideoXConfig
from dollar_jax.models.wan import WanConfig
from dollar_jax.parallel.hlo import collectives, total
from dollar_jax.parallel.mesh import MeshConfig, make_mesh
from dollar_jax.parallel.topologies import open_devices, parse

attend = jax.jit(attention)
reference = jax.jit(jax.nn.dot_product_attention)


def _inputs(batch, queries, keys, heads=3, size=8):
  rng = np.random.default_rng(0)
  lengths = (queries, keys, keys)
  return [
    rng.standard_normal((batch, n, heads, size)).astype(np.float32)
    for n in lengths
  ]


@pytest.mark.parametrize("queries, keys", [(7, 7), (5, 9), (4, 1)])
def test_output_equals_jax(queries, keys):
  inputs = _inputs(2, queries, keys)
  np.testing.assert_allclose(attend(*inputs), reference(*inputs), atol=2e-6)


def test_gradients_equal_jax():
  inputs = _inputs(2, 5, 6)
  weight = _inputs(2, 5, 1)[0][::-1]

  def gradients(fn):
    def loss(*x):
      return jnp.sum(fn(*x) * weight)

    return jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)

  ours, theirs = map(gradients, (attention, jax.nn.dot_product_attention))
  for a, b in zip(ours, theirs, strict=True):
    assert float(np.abs(b).max()) > 1e-2
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_equal_keys_average_the_values():
  query, key, value = _inputs(2, 4, 6)
  out = attend(query, np.ones_like(key), value)
  wanted = np.broadcast_to(value.mean(1, keepdims=True), query.shape)
  np.testing.assert_allclose(out, wanted, atol=1e-6)


def test_large_logits_do_not_overflow():
  query, _, value = _inputs(1, 6, 6)
  query = 1e3 * query / np.linalg.norm(query, axis=-1, keepdims=True)
  out = attend(query, query, value)  # each token looks at itself alone
  np.testing.assert_allclose(out, value, atol=1e-6)


def test_bfloat16_keeps_logits_and_softmax_in_float32():
  """Logits of 40.25 and 40.56, which bfloat16 would round to 40.5."""
  query, near, far = (
    np.full((1, 1, 1, 1), x, jnp.bfloat16) for x in (10.0625, 4.03125, 4.0)
  )
  value = np.array([1, 0], jnp.bfloat16).reshape(1, 2, 1, 1)
  out = attend(query, np.concatenate([near, far], 1), value)
  assert out.dtype == jnp.bfloat16
  wanted = 1 / (1 + np.exp(-10.0625 * 0.03125))
  assert float(out[0, 0, 0, 0]) == pytest.approx(float(wanted), abs=4e-3)


@pytest.mark.parametrize("queries, keys", [(300, 290), (130, 1), (128, 257)])
def test_chunks_equal_jax(monkeypatch, queries, keys):
  """Several chunks of 128 rows, the last one filled up."""
  monkeypatch.setattr(cpu_attention, "CHUNK_SCORES", 1)
  *inputs, weight = _inputs(2, queries, keys) + _inputs(2, queries, 1)[:1]

  def in_chunks(*x):
    scaled = (x[0] * 8**-0.5, *x[1:])
    heads = (jnp.swapaxes(a, 1, 2) for a in scaled)
    return jnp.swapaxes(cpu_attention.attend_in_chunks(*heads), 1, 2)

  def values_and_gradients(fn):
    out, pull = jax.vjp(fn, *inputs)
    return out, *pull(weight[:, ::-1])

  ours, theirs = (
    jax.jit(lambda fn=fn: values_and_gradients(fn))()
    for fn in (in_chunks, jax.nn.dot_product_attention)
  )
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_chunks_in_bfloat16_are_within_its_spread():
  inputs = [x.astype(jnp.bfloat16) for x in _inputs(1, 520, 520)]
  wanted = reference(*(x.astype(np.float32) for x in inputs))
  out = attend(*inputs)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(np.float32), wanted, atol=4e-3)


@pytest.mark.parametrize("tokens, chunks", [(511, False), (512, True)])
def test_many_scores_go_chunk_by_chunk_on_the_cpu(tokens, chunks):
  jaxpr = str(jax.make_jaxpr(attention)(*_inputs(1, tokens, tokens)))
  assert ("scan" in jaxpr) == chunks


@pytest.mark.parametrize("queries, keys", [(130, 400), (5, 1)])
def test_splash_equals_jax(monkeypatch, queries, keys):
  """Blocks of 128 tokens, keys in two groups of two, the last filled up."""
  monkeypatch.setattr(attentions, "SPLASH_BLOCK", 128)
  monkeypatch.setattr(attentions, "SPLASH_GROUP", 2)
  splash = functools.partial(attentions._attend_splash, interpret=True)
  *inputs, weight = _inputs(2, queries, keys) + _inputs(2, queries, 1)[:1]

  def values_and_gradients(fn):
    out, pull = jax.vjp(fn, *inputs)
    return out, *pull(weight[:, ::-1])

  ours, theirs = (
    jax.jit(lambda fn=fn: values_and_gradients(fn))()
    for fn in (splash, jax.nn.dot_product_attention)
  )
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("queries, keys", [(5, 7), (4, 6)])
def test_cudnn_fills_up_odd_lengths(queries, keys):
  def attend(*x):
    return attentions._attend_cudnn(*x, implementation="xla")

  inputs = _inputs(2, queries, keys)
  np.testing.assert_allclose(
    jax.jit(attend)(*inputs), reference(*inputs), atol=2e-6
  )


@pytest.mark.parametrize(
  "tokens, block, blocks, groups",
  [
    (1, 128, 1, 1),
    (513, 384, 2, 1),
    (2560, 512, 5, 1),
    (2561, 512, 6, 2),
    (7680, 512, 15, 3),
    (17776, 512, 35, 7),
    (32760, 512, 64, 16),
  ],
)
def test_splash_fills_up_little(tokens, block, blocks, groups):
  """The groups are what the backward pass holds gradients of."""
  size, group = attentions._splash_blocks(tokens, attentions.SPLASH_GROUP)
  assert (size, group * groups) == (block, block * blocks)
  assert attentions._splash_blocks(tokens, 1) == (block, block)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_splash_blocks_hold_every_length(most):
  for tokens in range(1, 20_000, 61):
    block, group = attentions._splash_blocks(tokens, most)
    assert block % 128 == 0
    assert group % block == 0
    assert group <= most * block
    assert -tokens % group < max(128 * most, 3 * block)


def _choose(kernel="auto", context="auto", **changes):
  wan = {
    "platform": "tpu",
    "dtype": "bfloat16",
    "heads": 12,
    "head_dim": 128,
    "keys": 32760,
  }
  return choose(kernel, context, **wan | changes)


@pytest.mark.parametrize(
  "changes, kernel, reason",
  [
    ({}, "splash", "the devices are tpu, bfloat16, head size 128"),
    ({"dtype": "float32", "head_dim": 12}, "splash", "the devices are tpu"),
    ({"dtype": "float16"}, "xla", "splash attention takes bfloat16 or float32"),
    ({"keys": 77}, "xla", "77 keys do not fill one block of 128"),
    ({"keys": 128}, "splash", "the devices are tpu"),
    ({"platform": "gpu"}, "cudnn", "the devices are gpu, bfloat16"),
    ({"platform": "gpu", "keys": 1}, "cudnn", "the devices are gpu"),
    ({"platform": "gpu", "dtype": "float32"}, "xla", "cuDNN takes bfloat16 or"),
    ({"platform": "gpu", "head_dim": 136}, "xla", "cuDNN takes head sizes"),
    ({"platform": "gpu", "head_dim": 60}, "xla", "cuDNN takes head sizes that"),
    ({"platform": "cpu"}, "xla", "the devices are cpu"),
    ({"kernel": "xla"}, "xla", "attention is 'xla'"),
    ({"kernel": "splash", "keys": 1}, "splash", "attention is 'splash'"),
    ({"kernel": "cudnn", "platform": "gpu"}, "cudnn", "attention is 'cudnn'"),
  ],
)
def test_kernel_by_platform_shape_and_type(changes, kernel, reason):
  choice = _choose(**changes)
  assert (choice.kernel, choice.context) == (kernel, "local")
  assert choice.reason.startswith(reason)
  assert str(choice) == f"{kernel}: {choice.reason}"


@pytest.mark.parametrize(
  "axes, changes, wanted",
  [
    (
      {"context": 4, "data": 8},
      {},
      (
        "splash under ulysses: the devices are tpu, bfloat16, head size 128; "
        "12 heads / context=4"
      ),
    ),
    (
      {"tensor": 2, "context": 3},
      {"platform": "cpu", "context": "ulysses"},
      "xla under ulysses: the devices are cpu; 6 heads / context=3",
    ),
    (
      {"context": 8},
      {},
      (
        "xla under ring: 12 heads do not divide among context=8; the steps of "
        "a ring are plain XLA"
      ),
    ),
    (
      {"tensor": 4, "context": 2},
      {"platform": "gpu"},
      (
        "xla under ring: 12 heads / tensor=4 = 3 do not divide among "
        "context=2; the steps of a ring are plain XLA"
      ),
    ),
    (
      {"context": 4},
      {"context": "ring"},
      "xla under ring: context is 'ring'; the steps of a ring are plain XLA",
    ),
    (
      {"context": 8},
      {"context": "ring", "cross": True, "keys": 512},
      "splash: the devices are tpu, bfloat16, head size 128",
    ),
    (
      {"context": 1, "tensor": 1},
      {"context": "ring", "kernel": "splash"},
      "splash: attention is 'splash'",
    ),
  ],
)
def test_how_tokens_meet_by_heads_and_mesh(axes, changes, wanted):
  assert str(_choose(axes=axes, **changes)) == wanted


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      {"kernel": "flash"},
      "attention is 'flash'; use one of ['auto', 'xla', 'cudnn', 'splash']",
    ),
    (
      {"context": "rings"},
      "context is 'rings'; use one of ['auto', 'ulysses', 'ring']",
    ),
    (
      {"kernel": "splash", "platform": "cpu"},
      (
        "attention is 'splash', but splash attention runs on TPUs and the "
        "devices are cpu; set attention to 'auto'"
      ),
    ),
    (
      {"kernel": "splash", "dtype": "float16"},
      (
        "attention is 'splash', but splash attention takes bfloat16 or "
        "float32, and dtype is float16; set attention to 'auto'"
      ),
    ),
    (
      {"kernel": "cudnn"},
      (
        "attention is 'cudnn', but cuDNN runs on GPUs and the devices are tpu;"
        " set attention to 'auto'"
      ),
    ),
    (
      {"kernel": "cudnn", "platform": "gpu", "dtype": "float32"},
      (
        "attention is 'cudnn', but cuDNN takes bfloat16 or float16, and dtype "
        "is float32; set attention to 'auto'"
      ),
    ),
    (
      {"kernel": "cudnn", "platform": "gpu", "head_dim": 160},
      (
        "attention is 'cudnn', but cuDNN takes head sizes that are multiples "
        "of 8 up to 128, and this is 160; set attention to 'auto'"
      ),
    ),
    (
      {"axes": {"tensor": 8}},
      (
        "12 attention heads do not divide among tensor=8 devices; use "
        "tensor=1, 2, 3, 4, 6 or 12"
      ),
    ),
    (
      {"axes": {"tensor": 2, "context": 4}, "context": "ulysses"},
      (
        "context is 'ulysses', but 12 heads / tensor=2 = 6 do not divide among"
        " context=4 devices; use context=1, 2, 3 or 6, or set context to "
        "'ring'"
      ),
    ),
    (
      {"axes": {"context": 2}, "heads": 1, "context": "ulysses"},
      (
        "context is 'ulysses', but 1 heads do not divide among context=2 "
        "devices; use context=1, or set context to 'ring'"
      ),
    ),
    (
      {"axes": {"context": 4}, "kernel": "splash", "context": "ring"},
      (
        "attention is 'splash', but context is 'ring', and a ring needs the "
        "softmax's sums of every step, which splash does not give with "
        "gradients; set attention to 'xla' or use 'ulysses' with context=1, 2,"
        " 3, 4, 6 or 12"
      ),
    ),
    (
      {"axes": {"context": 8}, "kernel": "splash"},
      (
        "attention is 'splash', but 12 heads do not divide among context=8, "
        "and a ring needs the softmax's sums of every step, which splash does "
        "not give with gradients; set attention to 'xla' or use 'ulysses' with"
        " context=1, 2, 3, 4, 6 or 12"
      ),
    ),
  ],
)
def test_what_cannot_be_done_is_refused(changes, message):
  with pytest.raises(ValueError) as fault:
    _choose(**changes)
  assert str(fault.value) == message


@pytest.mark.parametrize("config", [WanConfig, CogVideoXConfig])
def test_configs_refuse_unknown_names(config):
  with pytest.raises(ValueError, match="attention is 'flash'; use one of"):
    config(attention="flash")
  with pytest.raises(ValueError, match="context is 'rings'; use one of"):
    config(context="rings")


@pytest.mark.parametrize(
  "platform, kernel", [("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "xla")]
)
def test_platform_is_the_mesh_s(monkeypatch, platform, kernel):
  """The devices of a mesh need not be here."""
  ran = []
  stubs = {k: lambda *x, k=k: ran.append(k) or x[0] for k in attentions._ATTEND}
  monkeypatch.setattr(attentions, "_ATTEND", stubs)
  device = AbstractDevice("anything", None, platform)
  mesh = AbstractMesh((2,), ("data",), abstract_device=device)
  inputs = [x.astype(jnp.bfloat16) for x in _inputs(2, 128, 128)]
  with jax.sharding.use_abstract_mesh(mesh):
    jax.make_jaxpr(attention)(*inputs)
  assert ran == [kernel]


def test_explicit_choice_that_cannot_be_is_refused_here():
  with pytest.raises(ValueError, match="runs on TPUs and the devices are cpu"):
    attention(*_inputs(1, 4, 4), kernel="splash")


@pytest.mark.tpu_aot
@pytest.mark.parametrize(
  "context, kind, count",
  # four arrays are exchanged, and their gradients; a ring of four passes keys
  # and values on three times, then queries and what belongs to them
  [("ulysses", "all-to-all", 8), ("ring", "collective-permute", 2 * 3 + 16)],
)
def test_attention_is_compiled_for_a_tpu_that_is_not_here(context, kind, count):
  mesh = make_mesh(MeshConfig(context=4), open_devices(parse("v5e:2x2")))
  place = NamedSharding(mesh, PartitionSpec(None, "context"))
  x = jax.ShapeDtypeStruct((1, 1024, 4, 64), jnp.bfloat16, sharding=place)

  def loss(query, key, value):
    return jnp.sum(attention(query, key, value, context=context) ** 2)

  with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().as_text()
  assert ("tpu_custom_call" in text) == (context == "ulysses")  # splash
  assert total(collectives(text))[kind]["count"] == count
