"""What a judge of relevance has to beat: similarity of query and document as an embedding sees it."""

from __future__ import annotations

from pathlib import Path

from prism.errors import InputError
from prism.files.beir import BeirSet
from studies.label_quality import Judged, Pairs
from studies.systems import identity

LSA_DIMENSIONS = 200
_SMALL = 100
"""Documents below which words that occur once count too: there are no others."""


def lsa(data: BeirSet, pairs: Pairs) -> dict[tuple[str, str], float]:
    """Cosine in latent semantic space (Deerwester et al. 1990): an embedding that needs no download.

    Raises InputError when the documents have too few words in common to span a space.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    ids = list(data.corpus)
    tfidf = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=1 if len(ids) < _SMALL else 2)
    try:
        weights = tfidf.fit_transform(data.text(id_) for id_ in ids)
        dimensions = max(1, min(LSA_DIMENSIONS, weights.shape[1] - 1, weights.shape[0] - 1))
        svd = TruncatedSVD(dimensions, random_state=0).fit(weights)
    except ValueError as error:
        raise InputError(f"{data.name}: too few words for the LSA baseline ({error}): is the corpus whole?") from error
    documents, place = normalize(svd.transform(weights)), {id_: number for number, id_ in enumerate(ids)}
    queries = list(dict.fromkeys(query for query, _ in pairs))
    asked = normalize(svd.transform(tfidf.transform([data.queries[query] for query in queries])))
    row = {query: number for number, query in enumerate(queries)}
    return {(q, d): float(asked[row[q]] @ documents[place[d]]) for q, d in pairs}


def embedded(data: BeirSet, pairs: Pairs, model: str, cache: Path) -> Judged:
    """Cosine similarity under a sentence-transformers model; document vectors are kept in `cache`.

    Raises InputError when the model cannot be loaded.
    """
    from prism.retrieval.dense import build_index
    from prism.retrieval.sentence_models import SentenceEncoder

    encoder = SentenceEncoder(model)
    documents, queries = sorted({d for _, d in pairs}), sorted({q for q, _ in pairs})
    index = build_index(lambda: map(data.text, documents), encoder, identity(f"dense:{model}"), cache)
    hits = index.search(encoder.queries([data.queries[q] for q in queries]), len(documents))
    scores = {
        (query, documents[position]): score
        for query, found in zip(queries, hits, strict=True)
        for position, score in found
        if (query, documents[position]) in pairs
    }
    return Judged(Path(model).name, scores, None, 1)
