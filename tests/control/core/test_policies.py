import msgspec
import pytest

from control.core.policies import MEANINGS, changes, described, rows
from wire.records import AdmissionClass, ModelPolicy


def test_every_field_of_a_policy_has_a_meaning_for_people() -> None:
    fields = {field.name for field in msgspec.structs.fields(ModelPolicy)} - {"v", "model"}
    assert fields <= set(MEANINGS)


def test_rows_show_what_differs_from_the_default_and_from_what() -> None:
    found = {row.key: row for row in rows(ModelPolicy(model="m", hedge=True, first_token_limit_s=30.0))}
    assert ("true", "false") == (found["hedge"].value, found["hedge"].default)
    assert ("30", "600") == (found["first_token_limit_s"].value, found["first_token_limit_s"].default)
    assert ("expected_time", "") == (found["routing"].value, found["routing"].default)
    assert "standard" == found["admission"].value


def test_changes_are_read_in_the_types_of_the_fields() -> None:
    read = changes("m", ["hedge=true", "total_limit_s=1.5", "admission=batch", "fallback = small"], ["routing"])
    assert {
        "hedge": True,
        "total_limit_s": 1.5,
        "admission": AdmissionClass.BATCH,
        "fallback": "small",
        "routing": "expected_time",
    } == read
    assert {} == changes("m", [], [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hedge", "'hedge' is no change; write it like hedge=true"),
        ("colour=red", "a policy has no 'colour'; it has routing"),
        ("model=x", "a policy has no 'model'"),
        ("hedge=perhaps", "hedge: 'perhaps' will not do: it is true or false"),
        ("first_token_limit_s=soon", "it is a number of at least 0"),
        ("first_token_limit_s=-1", "it is a number of at least 0"),
        ("first_token_limit_s=nan", "it is a number of at least 0"),
        ("total_limit_s=inf", "it is a number of at least 0"),
        ("total_limit_s=0", "a limit of 0 would end every request"),
        ("admission=vip", "it is one of interactive, standard, batch, none"),
        ("routing=best", "it is one of expected_time, random"),
        ("fallback=m", "fallback: m cannot be its own"),
        ("adapter_of=m", "adapter_of: m cannot be its own"),
    ],
)
def test_a_change_that_makes_no_sense_is_answered_with_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        changes("m", [text], [])


def test_what_changed_is_told_a_line_each() -> None:
    before = ModelPolicy(model="m", fallback="small")
    after = ModelPolicy(model="m", hedge=True)
    assert ["fallback: small -> none", "hedge: false -> true"] == described(before, after)
    assert ["hedge: false -> true"] == described(None, after)
    assert [] == described(None, ModelPolicy(model="m"))
