"""The model that the claims of this folder are checked on."""

from nopos import SubjectLoader
from small_gpt2 import trained


def pytest_nopos_subjects(config):
    return [SubjectLoader("small GPT-2", trained)]
