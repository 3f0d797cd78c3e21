"""Linear classifiers on fixed features: logistic regression by L-BFGS, several penalties at once, and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xmodal.distributed.mesh import make_mesh

_AT_ONCE = 2**24  # logits of all penalties that are held at a time


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, classes: int, l2: np.ndarray, iterations: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Fits multinomial logistic regressions, one for each penalty, in one program.

    What is minimised is mean cross-entropy + l2 / 2 * |kernel|^2; the bias is not penalised. scikit-learn's `C` is
    1 / (l2 * samples).

    Args:
      features: float32 [samples, dim].
      labels: int [samples], from 0.
      classes: number of them.
      l2: penalties, [penalties].
      iterations: of L-BFGS at most; fits whose gradient is zero to rounding stop before.

    Returns:
      kernels [penalties, dim, classes] and biases [penalties, classes].
    """
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)  # centred features make a better-shaped problem
    rows = min(max(64, _AT_ONCE // (len(l2) * classes)), len(features))
    parts = -(-len(features) // rows)
    pad = parts * rows - len(features)
    x = np.pad(features - mean, ((0, pad), (0, 0))).reshape(parts, rows, -1)
    y = np.pad(labels.astype(np.int32), (0, pad)).reshape(parts, rows)
    weight = np.pad(np.full(len(labels), 1 / len(labels), np.float32), (0, pad)).reshape(parts, rows)
    # On one device, whatever the mesh: the figures then do not depend on how many there are.
    with jax.set_mesh(make_mesh(dict(data=1, fsdp=1, tensor=1), jax.local_devices()[:1])):
        fitted = _fit(x, y, weight, np.asarray(l2, np.float32), classes=classes, iterations=iterations)
    kernel, bias = map(np.asarray, fitted)
    return kernel, bias - mean @ kernel


@functools.partial(jax.jit, static_argnames=("classes", "iterations"))
def _fit(x: jax.Array, y: jax.Array, weight: jax.Array, l2: jax.Array, *, classes: int, iterations: int) -> tuple:
    solver = optax.lbfgs()

    @jax.checkpoint  # the logits of one part are held at a time, also in the backward pass
    def part(params, x, y, weight):
        logits = jnp.dot(x, params[0], precision=jax.lax.Precision.HIGHEST) + params[1]
        return jnp.sum(weight * optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def loss(params, l2):
        total = jnp.sum(jax.lax.map(lambda rows: part(params, *rows), (x, y, weight)))
        return total + l2 / 2 * jnp.sum(params[0] ** 2)

    def fit(l2):
        own = lambda params: loss(params, l2)

        def step(carry):
            number, params, state, value, grad = carry
            updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=own)
            # The line search has evaluated the loss where it ended.
            value, grad = (optax.tree.get(state, name) for name in ("value", "grad"))
            return number + 1, optax.apply_updates(params, updates), state, value, grad

        going = lambda carry: (carry[0] < iterations) & (optax.tree.norm(carry[-1]) > 1e-7)
        start = jnp.zeros((x.shape[-1], classes)), jnp.zeros(classes)
        return jax.lax.while_loop(going, step, (0, start, solver.init(start), *jax.value_and_grad(own)(start)))[1]

    return jax.vmap(fit)(l2)


def fit_ridge(features: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on targets of 1 for the class and -1 for the others, in closed form.

    What is minimised is the mean squared error + l2 * |kernel|^2; scikit-learn's `alpha` is l2 * samples.

    Args:
      features: [samples, dim].
      labels: int [samples].
      classes: number of them.
      l2: penalty.

    Returns:
      kernel [dim, classes] and bias [classes], float64.
    """
    x, y = features.astype(np.float64), 2.0 * (labels[:, None] == np.arange(classes)) - 1.0
    shift, mean = x.mean(axis=0), y.mean(axis=0)
    x, y, alpha = x - shift, y - mean, l2 * len(labels)
    if x.shape[0] < x.shape[1]:  # fewer samples than dimensions: the smaller of two equal systems
        kernel = x.T @ np.linalg.solve(x @ x.T + alpha * np.eye(len(x)), y)
    else:
        kernel = np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ y)
    return kernel, mean - shift @ kernel


def fit_means(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest class mean (Snell et al. 2017, equation 8): kernel [dim, classes] and bias [classes], float64.

    The logits are minus half the squared distances to the means, but for what is the same for all classes.
    """
    own = (labels == np.arange(classes)[:, None]).astype(np.float64)
    means = own @ features.astype(np.float64) / own.sum(axis=1, keepdims=True)
    return means.T, -0.5 * np.sum(means**2, axis=1)
