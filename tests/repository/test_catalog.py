import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest, ModelNotFound, ModelNotReady
from headrace.repository.catalog import CONDITIONS, NOT_BUILT, NOT_LOADED, UNLOADED, Catalog, IndexEntry, State


@pytest.fixture
def catalog():
    catalog = Catalog()
    catalog.ready("m", 1, "m1")
    catalog.ready("m", 10, "m10")
    catalog.ready("m", 2, "m2")
    return catalog


def test_resolves_a_version_or_the_newest_ready(catalog):
    assert catalog.resolve("m", "2") == "m2"
    assert catalog.resolve("m", "") == catalog.resolve("m") == "m10"
    catalog.unloading("m", 10)
    assert catalog.resolve("m") == "m2"


def test_other_spellings_of_a_number(catalog):
    assert catalog.resolve("m", "02") == catalog.resolve("m", "+2") == "m2"


@pytest.mark.parametrize(
    ("name", "version", "error", "message"),
    [
        ("x", "", ModelNotFound, "Request for unknown model: 'x' is not found"),
        ("x", "1", ModelNotFound, "Request for unknown model: 'x' is not found"),
        ("m", "9", ModelNotFound, "Request for unknown model: 'm' version 9 is not found"),
        ("loads", "", ModelNotFound, "Request for unknown model: 'loads' has no available versions"),
        ("loads", "1", ModelNotReady, "Request for unknown model: 'loads' version 1 is not at ready state"),
        ("failed", "1", ModelNotReady, "Request for unknown model: 'failed' version 1 is not at ready state"),
        ("broken", "", ModelNotFound, "Request for unknown model: 'broken' has no available versions"),
        ("broken", "1", ModelNotFound, "Request for unknown model: 'broken' version 1 is not found"),
        *(
            (
                name,
                version,
                InvalidRequest,
                f"failed to get model version from specified version string '{version}' (details: {details}), "
                "version should be an integral value > 0",
            )
            for name in ("m", "x")
            for version, details in [
                ("a", "not an integer"),
                ("1.0", "not an integer"),
                (" 1", "not an integer"),
                ("\u0661", "not an integer"),
                ("0", "not above 0"),
                ("-1", "not above 0"),
                ("9223372036854775808", "out of range"),
            ]
        ),
    ],
)
def test_refusals(catalog, name, version, error, message):
    catalog.loading("loads", 1)
    catalog.failed("failed", 1, "broken file")
    catalog.failed("broken", None, "bad model.toml")
    with pytest.raises(error) as raised:
        catalog.resolve(name, version)
    assert str(raised.value) == message
    assert type(raised.value) is error


def test_a_long_version_is_not_echoed_whole(catalog):
    with pytest.raises(InvalidRequest, match="out of range") as raised:
        catalog.resolve("m", "9" * 100_000)
    assert len(str(raised.value)) < 200


def test_index_and_names(catalog):
    catalog.failed("a", None, "bad model.toml")
    catalog.loading("m", 11)
    catalog.failed("m", 2, "failed")
    assert catalog.names() == ["a", "m"]
    assert catalog.ready_versions("m") == [1, 10]
    assert catalog.ready_versions("a") == catalog.ready_versions("?") == []
    assert catalog.index() == [
        IndexEntry("a", None, State.UNAVAILABLE, "bad model.toml"),
        IndexEntry("m", 1, State.READY, ""),
        IndexEntry("m", 2, State.UNAVAILABLE, "failed"),
        IndexEntry("m", 10, State.READY, ""),
        IndexEntry("m", 11, State.LOADING, ""),
    ]
    assert repr(catalog) == (
        "<Catalog generation 4: a/- UNAVAILABLE, m/1 READY, m/2 UNAVAILABLE, m/10 READY, m/11 LOADING>"
    )


def test_a_reason_that_names_a_path_which_is_not_utf_8_can_be_told(catalog):
    catalog.failed("n", 1, "there is no /mnt/caf\udce9")
    assert catalog.index()[-1].reason == r"there is no /mnt/caf\udce9"


def test_an_operator_is_told_what_is_wrong_from_what_is_wanted(catalog):
    catalog.failed("m", 2, "no such operator")
    catalog.failed("m", 3, UNLOADED)
    catalog.failed("n", None, NOT_LOADED)
    catalog.failed("o", None, NOT_BUILT)
    catalog.ready("m", 10, object(), "loading it again failed")
    catalog.loading("m", 11)
    catalog.loading("m", 12)
    catalog.unloading("m", 12)
    conditions = {(entry.name, entry.version): entry.condition for entry in catalog.index()}
    assert conditions == {
        ("m", 1): "ready",
        ("m", 2): "failed",
        ("m", 3): "unloaded",
        ("m", 10): "stale",
        ("m", 11): "loading",
        ("m", 12): "unloading",
        ("n", None): "unloaded",
        ("o", None): "unloaded",
    }
    assert set(conditions.values()) == set(CONDITIONS)


def test_a_version_found_replaces_the_word_that_the_model_is_broken(catalog):
    catalog.failed("a", None, "bad model.toml")
    catalog.loading("a", 1)
    assert [entry.version for entry in catalog.index() if entry.name == "a"] == [1]


def test_generation_grows_with_what_is_served_and_only_then(catalog):
    before = catalog.generation
    catalog.loading("n", 1)
    catalog.failed("n", 1, "no")
    catalog.forget("n", 1)
    catalog.forget("unknown", 7)
    assert catalog.generation == before
    catalog.ready("m", 1, "another")
    assert catalog.generation == before + 1
    assert catalog.resolve("m", "1") == "another"
    catalog.forget("m", 1)
    assert catalog.generation == before + 2
    with pytest.raises(ModelNotFound):
        catalog.resolve("m", "1")


def test_forgetting_the_last_version_forgets_the_model(catalog):
    for version in (1, 2, 10):
        catalog.forget("m", version)
    assert catalog.names() == []
    assert repr(catalog) == "<Catalog generation 6: empty>"


changes = st.tuples(
    st.sampled_from(["loading", "ready", "unloading", "failed", "forget"]),
    st.sampled_from("ab"),
    st.integers(1, 3),
)


@given(st.lists(changes, max_size=30))
def test_answers_agree_with_the_states(steps):
    """Whatever happened: what is READY resolves, nothing else does, and equal generations mean equal answers."""
    catalog = Catalog()
    answers = {}
    for count, (change, name, version) in enumerate(steps):
        extra = {"ready": [count + 1], "failed": ["why"]}.get(change, [])
        getattr(catalog, change)(name, version, *extra)
        ready = {(e.name, e.version) for e in catalog.index() if e.state == "READY"}
        served = {}
        for model in "ab":
            for text in ("", "1", "2", "3"):
                try:
                    served[model, text] = catalog.resolve(model, text)
                except (ModelNotFound, ModelNotReady):
                    continue
        assert {(n, int(v)) for n, v in served if v} == ready
        for model in "ab":
            newest = max((v for n, v in ready if n == model), default=None)
            assert served.get((model, "")) == served.get((model, str(newest)))
        assert answers.setdefault(catalog.generation, served) == served


def test_labels_stand_for_versions():
    catalog = Catalog()
    catalog.ready("m", 1, "one")
    catalog.ready("m", 2, "two")
    generation = catalog.generation
    catalog.label("m", {"stable": 1, "next": 3})
    assert catalog.generation == generation + 1
    assert catalog.resolve("m", "stable") == "one"
    with pytest.raises(InvalidRequest, match=r"'stabel' .*, version should be .* > 0, or a label: next, stable$"):
        catalog.resolve("m", "stabel")
    with pytest.raises(ModelNotReady, match="'m' version 3, labelled 'next', is not at ready state"):
        catalog.resolve("m", "next")
    catalog.ready("m", 3, "three")
    assert catalog.resolve("m", "next") == "three"
    catalog.unloading("m", 1)
    with pytest.raises(ModelNotReady):
        catalog.resolve("m", "stable")
    generation = catalog.generation
    catalog.label("m", {"stable": 1, "next": 3})
    assert catalog.generation == generation  # nothing new
    catalog.label("m", {})
    with pytest.raises(InvalidRequest, match="failed to get model version from specified version string 'next'"):
        catalog.resolve("m", "next")
    assert (catalog.state("m", 3), catalog.state("m", 1), catalog.state("n", 1)) == ("READY", "UNLOADING", None)


def test_a_version_may_stand_in_for_another():
    catalog = Catalog()
    catalog.ready("m", 1, "one")
    catalog.ready("m", 2, "two")
    catalog.label("m", {"stable": 2, "old": 1})
    generation = catalog.generation
    catalog.stand_in("m", 2, 1)
    assert catalog.generation == generation + 1
    found = {version: catalog.resolve("m", version) for version in ("", "stable", "old", "1", "2", "02")}
    assert found == {"": "one", "stable": "one", "old": "one", "1": "one", "2": "two", "02": "two"}
    catalog.stand_in("m", 2, 1)
    assert catalog.generation == generation + 1, "nothing new"
    catalog.ready("m", 3, "three")
    assert (catalog.resolve("m"), catalog.resolve("m", "stable")) == ("three", "one")
    catalog.unloading("m", 3)
    catalog.unloading("m", 1)
    assert (catalog.resolve("m"), catalog.resolve("m", "stable")) == ("two", "two"), "better than none"
    catalog.ready("m", 1, "one again")
    assert catalog.resolve("m") == "one again"
    catalog.stand_in("m", 2, None)
    assert catalog.resolve("m") == "two"
    catalog.stand_in("m", 2, None)
