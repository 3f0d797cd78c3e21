"""Makes `bert_casing.json`: how transformers reads a BERT folder whose tokenizer_config.json and tokenizer.json differ.

Every folder has the same vocabulary with capitals and accents. Its tokenizer.json lower-cases or does not, and its
tokenizer_config.json states the class and the settings of the `cases`, or there is none. Run it as `make_golden.py`.
"""

import argparse
import itertools
import json
import pathlib
import tempfile

import tokenizers
import transformers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "Red", "RED", "café", "cafe", "CAFÉ", "Café", "苹", "果",
         "苹果", "a", "A", "é", "É", "##s"]  # fmt: skip
TEXTS = ["red Red RED", "café Café CAFÉ", "苹果 a", "A é É reds"]
CLASSES = (None, "BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast")
SETTINGS = [
    {}, dict(do_lower_case=True), dict(do_lower_case=False), dict(do_lower_case=False, strip_accents=True),
    dict(do_lower_case=True, strip_accents=False), dict(tokenize_chinese_chars=False, do_lower_case=False),
    dict(strip_accents=False),
]  # fmt: skip


def document(lower: bool) -> dict:
    """A tokenizer.json of BERT's kind."""
    pieces = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    pieces.add_special_tokens(WORDS[:5])
    pieces.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower)
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pieces.decoder = tokenizers.decoders.WordPiece()
    pieces.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return json.loads(pieces.to_str())


def read(stated: dict, settings: dict | None) -> list[list[int]] | str:
    """The ids of the texts, or the exception that transformers raises."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "config.json").write_text(json.dumps(dict(model_type="bert", vocab_size=len(WORDS))))
        (path / "tokenizer.json").write_text(json.dumps(stated))
        if settings is not None:
            (path / "tokenizer_config.json").write_text(json.dumps(settings))
        return transformers.AutoTokenizer.from_pretrained(folder)(TEXTS).input_ids


def main() -> None:
    """Writes the golden file into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    path = parser.parse_args().out / "bert_casing.json"
    documents = {name: document(name == "lowers") for name in ("lowers", "keeps")}
    cases = []
    for (name, stated), kind, more in itertools.product(documents.items(), CLASSES, SETTINGS):
        settings = more | (dict(tokenizer_class=kind) if kind else {})
        cases.append(dict(document=name, settings=settings, ids=read(stated, settings)))
    cases += [dict(document=name, settings=None, ids=read(stated, None)) for name, stated in documents.items()]
    made = dict(versions=dict(transformers=transformers.__version__), texts=TEXTS, documents=documents, cases=cases)
    path.write_text(json.dumps(made, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
