"""Every key of the configuration says what it means, and what it takes is what the code behind it takes."""

from kernels import attention
from models import config as models
from sweep.config import schema


def test_the_choices_of_the_model_and_of_the_backend_are_those_of_their_code():
    assert (schema.MLPS, schema.NORMS, schema.POSITIONS) == (models.MLPS, models.NORMS, models.POSITIONS)
    assert set(schema.BACKENDS) == {"auto", *attention.BACKENDS}
