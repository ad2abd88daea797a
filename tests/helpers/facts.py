"""Facts of a trial that nobody trains, for tests that need a plan's lines and no models."""

from sweep.runs.planned import Facts


def facts_of(trial_id: str, family_id: str) -> Facts:
    return Facts(
        trial_id=trial_id,
        family_id=family_id,
        params_non_embedding=776,
        params_total=1800,
        tokens=15872,
        flops=1e8,
        flops_per_token=6300.0,
        flops_6n=1.7e8,
        flops_6n_non_embedding=7e7,
        tokens_per_param=20.45,
        unique_tokens=134976,
        epochs=0.1,
        lr=0.008,
        lr_multiplier=1.0,
        depth=1,
        width=8,
        heads=1,
        seq_len=32,
        vocab_size=64,
        batch_tokens=256,
        steps=62,
        schedule="wsd",
        precision="fp32",
        seed=0,
        data_fingerprint="121a2bff9d68e877",
    )
