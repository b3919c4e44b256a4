"""LangChain: `PrismCompressor`, for `ContextualCompressionRetriever` or on its own."""

from __future__ import annotations

from collections.abc import Sequence

from prism.integrations.adapter import METADATA, Adapter, FrameworkDocument, JudgedDocument

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
except ImportError as error:
    raise ImportError(
        f'prism.integrations.langchain needs {error.name}: run pip install "prism-reranker[langchain]"', name=error.name
    ) from error


class PrismCompressor(Adapter, BaseDocumentCompressor):  # type: ignore[misc]  # its types are not followed
    """Keeps the documents that Prism says yes to, best first, with their evidence.

    What comes back are copies with the same ids: `metadata["relevance_score"]` is the score (as with other rerankers),
    `metadata["prism"]` everything else.
    """

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Raises as `Adapter.rank` does."""
        return self._copies(documents, self.rank(query, _passages(documents)))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents`, awaited."""
        return self._copies(documents, await self.arank(query, _passages(documents)))

    def _copies(self, documents: Sequence[Document], found: Sequence[JudgedDocument]) -> list[Document]:
        return [self._copy(documents[judged.index], judged) for judged in found]

    def _copy(self, document: Document, judged: JudgedDocument) -> Document:
        metadata = {**document.metadata, "relevance_score": judged.score, METADATA: self.metadata_of(judged)}
        text = self.text_of(judged, document.page_content)
        return document.model_copy(update={"page_content": text, "metadata": metadata})


def _passages(documents: Sequence[Document]) -> list[FrameworkDocument]:
    return [FrameworkDocument(document.page_content, document.metadata) for document in documents]
