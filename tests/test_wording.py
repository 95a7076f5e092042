import pytest
from pydantic import TypeAdapter, ValidationError

from holdfast.wording import describe


def test_a_complaint_that_we_have_no_words_for_is_passed_on_with_the_value() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(bytes).validate_python(3)
    (error,) = caught.value.errors()
    assert describe(error, [], present=True) == "Input should be a valid bytes, found 3"
