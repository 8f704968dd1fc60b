"""A recipe is checked, survives JSON, and is the training it says."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import data
from jaxnas.evaluators import children, recipes


def test_scores_of_a_curve():
    curves = jnp.asarray([[5.0, 9.0, 1.0, 2.0, 3.0], [5.0, jnp.nan, jnp.nan, jnp.nan, jnp.nan]])

    def scores(score, count=2):
        return recipes.Recipe(epochs=5, score=score, last_epochs=count).scores(curves).tolist()

    assert [scores(name)[0] for name in recipes.SCORES] == [3.0, 2.5, 9.0, 3.0]
    assert scores("mean", 9)[0] == 4.0
    assert all(np.isnan(scores(name)[1]) for name in recipes.SCORES)


@pytest.mark.parametrize("options, message", [
    ({"epochs": 0}, "epochs must be an integer of 1 or more, got 0"),
    ({"epochs": True}, "epochs"), ({"batch_size": 1.5}, "batch_size"),
    ({"learning_rate": 0}, "learning_rate must be finite and above 0"),
    ({"learning_rate": float("inf")}, "learning_rate"), ({"momentum": 1.0}, "momentum"),
    ({"weight_decay": -1.0}, "weight_decay"), ({"clip_norm": 0.0}, "clip_norm"),
    ({"nesterov": 1}, "nesterov"), ({"schedule": "step"}, "schedule must be one of"),
    ({"score": "min"}, "score must be one of"), ({"last_epochs": 0}, "last_epochs"),
    ({"drop_path_rate": 1.0}, "drop_path_rate"), ({"label_smoothing": -0.1}, "label_smoothing"),
])
def test_recipes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        recipes.Recipe(**options)


def test_a_recipe_survives_json():
    recipe = recipes.Recipe(epochs=7, clip_norm=5.0, schedule="cosine")
    assert recipes.Recipe(**json.loads(json.dumps(recipe.to_json()))) == recipe
    assert hash(recipe) == hash(recipes.Recipe(**recipe.to_json()))


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, arch, *, train, drop_path_rate=0.0):
        return nn.Dense(10, use_bias=False)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("schedule", recipes.SCHEDULES)
def test_softmax_regression_by_hand(schedule):
    recipe = recipes.Recipe(epochs=4, batch_size=8, learning_rate=0.05, schedule=schedule,
                            momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=1.5,
                            label_smoothing=0.1)
    numbers = np.random.default_rng(0)
    rows = jnp.arange(48, dtype=jnp.int32)
    examples = children.Examples(
        jnp.asarray(numbers.integers(0, 2, (48, 4, 4, 1)), jnp.uint8), rows % 10,
        jnp.asarray(numbers.permutation(48)[:32], jnp.int32), rows[::3])
    trainer = children.train_children(Linear(), recipe, valid_batch_size=5)
    keys, archs = jax.random.split(jax.random.key(1), 1), np.zeros((1, 2), np.int32)
    result = jax.jit(trainer.train)(keys, archs, examples, np.ones(1, bool))

    init_key, order_key, _ = jax.random.split(keys[0], 3)
    images, labels, train_rows, valid_rows = map(np.asarray, examples)
    images = images.reshape(len(images), -1).astype(np.float64)
    kernel = np.asarray(trainer.init(init_key, jnp.asarray(archs[0]), examples).params["Dense_0"][
        "kernel"], np.float64)
    velocity = np.zeros_like(kernel)

    def losses(rows, smoothing):
        logits = images[rows] @ kernel
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        target = (1 - smoothing) * np.eye(10)[labels[rows]] + smoothing / 10
        return -(target * logs).sum(1), np.exp(logs) - target, logits

    for epoch in range(4):
        rate = 0.05 if schedule == "constant" else 0.025 * (1 + np.cos(np.pi * epoch / 4))
        seen = []
        for rows in train_rows[np.asarray(data.epoch_batches(order_key, epoch, 32, 8))]:
            loss, difference, _ = losses(rows, 0.1)
            seen.append(loss.mean())
            gradient = images[rows].T @ difference / 8
            gradient *= min(1, 1.5 / np.linalg.norm(gradient))
            gradient += 0.01 * kernel
            velocity = 0.9 * velocity + gradient
            kernel = kernel - rate * (gradient + 0.9 * velocity)
        loss, _, logits = losses(valid_rows, 0.0)
        accuracy = 100 * (logits.argmax(1) == labels[valid_rows]).mean()
        np.testing.assert_allclose(result["train_loss"][0, epoch], np.mean(seen), rtol=1e-4)
        np.testing.assert_allclose(result["valid_loss"][0, epoch], loss.mean(), rtol=1e-4)
        np.testing.assert_allclose(result["valid_accuracy"][0, epoch], accuracy, rtol=1e-4)
