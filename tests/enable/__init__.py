"""Tests of ``aoti_eager/_enable``, and of what whole scripts must not notice."""
