"""Arena-Hard's questions, v0.1 or v2.0."""

from typing import Any

from dual_head.evaluate.benchmarks.base import Benchmark, Hub, Row, column_of, texts_of, user_message
from dual_head.evaluate.exchange import answer_id, choices_row
from dual_head.evaluate.types import Answer, Question

V2 = "arena-hard-v2.0"  # the layout of questions whose answers Arena-Hard 2.0 reads


class Arena(Benchmark):
    """v0.1's {"question_id", "cluster", "turns": [{"content"}]}, or v2.0's {"uid", "prompt"}."""

    hub = Hub("lmarena-ai/arena-hard-auto", file="data/arena-hard-v0.1/question.jsonl")
    files = "*question*.jsonl*"
    export = "arena_hard/{}.jsonl"

    def question(self, row: Row) -> Question:
        """Read a question of either version."""
        first, *rest = texts_of(row.get("turns") or [row.get("prompt")])
        category = str(row.get("cluster") or row.get("subcategory") or row.get("category") or "")
        layout = V2 if column_of(row, "uid") else ""
        # Their tools of v2.0 join by the uid.
        id = column_of(row, "uid", "question_id")
        return Question(id, user_message(first), tuple(rest), category=category, layout=layout)

    def export_row(self, question: Question, answer: Answer, system: str) -> dict[str, Any]:
        """A row of Arena-Hard's model_answer/MODEL.jsonl, in the layout of the question.

        v0.1's turns are {"content", "token_len"}, the latter where an answer tells its tokens. v2.0's messages end in
        {"content": {"answer"}}; its "metadata" counts another tokenizer's tokens, and add_markdown_info writes it.
        """
        if question.layout == V2:
            return _messages_row(question, answer, system)
        lengths = [{"token_len": tokens} for tokens in answer.tokens] or [{}] * len(answer.replies)
        turns = [{"content": reply.strip(), **length} for reply, length in zip(answer.replies, lengths, strict=True)]
        return choices_row(question.id, turns, system)


def _messages_row(question: Question, answer: Answer, system: str) -> dict[str, Any]:
    prompt = question.prompt
    messages: list[Any] = [*(user_message(prompt) if isinstance(prompt, str) else prompt)]
    for follow_up, reply in zip((None, *question.follow_ups), answer.replies, strict=True):
        messages += [] if follow_up is None else user_message(follow_up)
        messages.append({"role": "assistant", "content": {"answer": reply.strip()}})
    id = answer_id(system, question.id, list(answer.replies))
    return {"uid": question.id, "ans_id": id, "model": system, "messages": messages}


BENCHMARK = Arena
