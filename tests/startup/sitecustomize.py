"""Start Python programs of the tests: they are watched, and spared the import of large libraries."""

import os

if os.environ.get("REPLACEME_TEST_WARM"):
    import warm

    warm.hand_over()

import watch

watch.watch()
