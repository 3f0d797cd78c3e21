"""Writes evaluation.npz: what CLIP_benchmark, scikit-learn and torch make of random embeddings.

pip install --no-deps clip_benchmark==1.6.2 scikit-learn==1.9.1 joblib threadpoolctl narwhals cloudpickle loky
python tests/golden/make_evaluation.py
"""

import json
import pathlib

import numpy as np
import sklearn
import torch
from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestCentroid

OUT = pathlib.Path(__file__).with_name("evaluation.npz")
DIM = 12


def half(x):
    """What float16 can hold: stored in half the bytes."""
    return np.asarray(x).astype(np.float16).astype(np.float32)


class Table:
    """A model whose images are their embeddings, and whose texts are numbers of rows of a table."""

    def __init__(self, texts):
        self.texts = torch.tensor(texts)

    def encode_image(self, images):
        return images.flatten(1)

    def encode_text(self, rows):
        return self.texts[rows]


def numbers(texts):
    return torch.tensor([int(text) for text in texts])


def accuracy(output, target, topk):
    """CLIP_benchmark's formula; its own conversion of arrays of one number is an error since numpy 2.4."""
    correct = output.topk(max(topk), 1, True, True)[1].t().eq(target.view(1, -1))
    return [correct[:k].float().sum().item() / len(target) for k in topk]


zeroshot_classification.accuracy = accuracy


def retrieval(rng):
    """Images with two to six captions each."""
    counts = rng.integers(2, 7, 50)
    image = np.repeat(np.arange(50), counts)
    images = half(rng.normal(size=(50, DIM)))
    texts = half(images[image] + 2.5 * rng.normal(size=(len(image), DIM)))
    names = np.split(np.arange(len(image)).astype(str), np.cumsum(counts)[:-1])
    batches = [(torch.tensor(images[i : i + 8]), [list(own) for own in names[i : i + 8]]) for i in range(0, 50, 8)]
    found = zeroshot_retrieval.evaluate(Table(texts), batches, numbers, "cpu", amp=False, recall_k_list=[1, 5, 10])
    return dict(images=images, texts=texts, image=image.astype(np.int32)), found


def zero_shot(rng):
    """Nine classes with four prompts, and an uneven number of images of each."""
    labels = rng.choice(9, 200, p=np.array([8, 7, 6, 5, 4, 3, 2, 1, 1]) / 37)
    centres = rng.normal(size=(9, DIM))
    texts = half((centres[:, None] + 0.7 * rng.normal(size=(9, 4, DIM))) * rng.uniform(0.5, 2, (9, 4, 1)))  # any length
    images = half(centres[labels] + 1.6 * rng.normal(size=(200, DIM)))

    class Batches(list):
        class dataset:
            classes = tuple(range(9))

    batches = Batches((torch.tensor(images[i : i + 64]), torch.tensor(labels[i : i + 64])) for i in range(0, 200, 64))
    prompts = {str(c): [str(4 * c + t) for t in range(4)] for c in range(9)}
    table = Table(texts.reshape(36, DIM))
    found = zeroshot_classification.evaluate(table, batches, numbers, list(prompts), prompts, "cpu", amp=False)
    return dict(images=images, texts=texts, labels=labels.astype(np.int32)), found


def pairs(rng, captions):
    """Examples of two images and two captions, or of one image with a right and some wrong captions."""
    images = half(rng.normal(size=(80, 2 if captions == 2 else 1, DIM)))
    texts = rng.normal(size=(80, captions, DIM))
    texts[:, : images.shape[1]] += 0.3 * images
    texts = half(texts)
    names = np.arange(80 * captions).astype(str).reshape(80, captions)
    batches = [
        (torch.tensor(images[i : i + 16, ..., None, None]), names[i : i + 16].tolist()) for i in range(0, 80, 16)
    ]
    table = Table(texts.reshape(-1, DIM))
    found = image_caption_selection.evaluate(table, batches, numbers, "cpu", amp=False)
    return dict(images=images, texts=texts), found


def probes(rng):
    """Off-centre features of five classes, as embeddings are."""
    centres = rng.normal(size=(5, DIM))
    labels = np.concatenate([np.arange(5), rng.choice(5, 155, p=[0.4, 0.3, 0.15, 0.1, 0.05])])
    draw = lambda y: centres[y] + 1.5 * rng.normal(size=(len(y), DIM)) + np.linspace(2, 6, DIM)
    unit = lambda x: half(x / np.linalg.norm(x, axis=1, keepdims=True))
    train, test = unit(draw(labels)), unit(draw(rng.integers(0, 5, 100)))
    x, out, l2 = train.astype(np.float64), {}, np.array([1e-4, 1e-3, 1e-2, 1e-1])
    fits = [LogisticRegression(C=1 / (p * len(x)), tol=1e-10, max_iter=10_000).fit(x, labels) for p in l2]
    out["logistic"] = np.stack([fit.decision_function(test.astype(np.float64)) for fit in fits])
    targets = 2.0 * (labels[:, None] == np.arange(5)) - 1.0
    for name, rows in dict(all=np.arange(160), few=np.arange(8)).items():
        ridge = Ridge(alpha=0.01 * len(rows)).fit(x[rows], targets[rows])
        out[f"ridge_{name}"] = ridge.predict(test.astype(np.float64))
        out[f"centroid_{name}"] = NearestCentroid().fit(x[rows], labels[rows]).predict(test.astype(np.float64))
    return dict(train=train, test=test, labels=labels.astype(np.int32), l2=l2) | out


def several_classes(rng):
    """Scores of samples with several classes each."""
    right = rng.random((90, 6)) < 0.3
    right[np.arange(90), rng.integers(0, 6, 90)] = True
    scores = (rng.normal(size=(90, 6)) + right).astype(np.float32)  # no two are equal, which half() would make them
    return dict(scores=scores, right=right, mAP=average_precision_score(right, scores, average="macro"))


def uniformity(rng):
    """Wang & Isola (2020), as their appendix writes it."""
    points = half(rng.normal(size=(70, DIM)) + 0.5)
    x = torch.nn.functional.normalize(torch.tensor(points, dtype=torch.float64), dim=1)
    return dict(points=points, uniformity=torch.pdist(x).pow(2).mul(-2).exp().mean().log().numpy())


def main():
    rng = np.random.default_rng(0)
    arrays, figures = {}, {}
    parts = dict(
        retrieval=retrieval(rng), zero_shot=zero_shot(rng), winoground=pairs(rng, 2), wrong_captions=pairs(rng, 4)
    )
    for name, (inputs, found) in parts.items():
        arrays |= {f"{name}/{key}": np.asarray(value) for key, value in inputs.items()}
        figures[name] = found
    for name, inputs in dict(probes=probes(rng), several=several_classes(rng), health=uniformity(rng)).items():
        arrays |= {f"{name}/{key}": np.asarray(value) for key, value in inputs.items()}
    versions = dict(torch=torch.__version__, sklearn=sklearn.__version__, numpy=np.__version__, clip_benchmark="1.6.2")
    small = lambda a: a.astype(np.float16) if a.dtype == np.float32 and np.array_equal(a, half(a)) else a
    arrays = {key: small(a) for key, a in arrays.items()}
    np.savez_compressed(OUT, figures=json.dumps(figures), versions=json.dumps(versions), **arrays)
    print(json.dumps(figures, indent=1), OUT.stat().st_size)


if __name__ == "__main__":
    main()
