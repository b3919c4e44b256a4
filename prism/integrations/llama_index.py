"""LlamaIndex: `PrismPostprocessor`, among the `node_postprocessors` of a query engine or on its own."""

from __future__ import annotations

from collections.abc import Sequence

from prism.errors import InputError
from prism.integrations.adapter import METADATA, Adapter, FrameworkDocument, JudgedDocument

try:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise ImportError(
        f'prism.integrations.llama_index needs {error.name}: run pip install "prism-reranker[llama-index]"',
        name=error.name,
    ) from error


class PrismPostprocessor(Adapter, BaseNodePostprocessor):  # type: ignore[misc]  # its types are not followed
    """Keeps the nodes that Prism says yes to, best first, with their evidence.

    What comes back are copies with the same ids and relationships: `score` is Prism's, `metadata["prism"]` everything
    else, which is shown neither to an LLM nor to an embedding model.
    """

    @classmethod
    def class_name(cls) -> str:
        return "PrismPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Raises as `Adapter.rank` does."""
        return self._copies(nodes, self.rank(_query(query_bundle), _passages(nodes)) if nodes else [])

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._copies(nodes, await self.arank(_query(query_bundle), _passages(nodes)) if nodes else [])

    def _copies(self, nodes: Sequence[NodeWithScore], found: Sequence[JudgedDocument]) -> list[NodeWithScore]:
        return [
            nodes[judged.index].model_copy(
                update={"node": self._copy(nodes[judged.index].node, judged), "score": judged.score}
            )
            for judged in found
        ]

    def _copy(self, node: BaseNode, judged: JudgedDocument) -> BaseNode:
        hidden = {
            name: [*dict.fromkeys([*getattr(node, name), METADATA])]
            for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys")
        }
        metadata = {**node.metadata, METADATA: self.metadata_of(judged)}
        copied = node.model_copy(update={**hidden, "metadata": metadata})
        own = node.get_content(metadata_mode=MetadataMode.NONE)
        if (text := self.text_of(judged, own)) != own:
            copied.set_content(text)
        return copied


def _query(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise InputError("nodes are judged for a query: pass query_str or query_bundle")
    return str(query_bundle.query_str)


def _passages(nodes: Sequence[NodeWithScore]) -> list[FrameworkDocument]:
    return [
        FrameworkDocument(node.node.get_content(metadata_mode=MetadataMode.NONE), node.node.metadata) for node in nodes
    ]
