"""What tests of servers share."""

import pytest
from engines import character_tokenizer
from servers import CHAT


@pytest.fixture(scope="module")
def tokenizer():
    """A token a character, and conversations."""
    characters = character_tokenizer()
    characters.chat_template = CHAT
    return characters
