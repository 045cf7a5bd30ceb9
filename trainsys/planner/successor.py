from dataclasses import replace


def successor(config, teams, current, alive):
    if teams < 1:
        raise ValueError("none")
    pp = len(current.stage_layers)
    if teams < pp:
        from trainsys.models.geometry import split_layers

        return replace(
            current, dp=1, pp=teams, stage_layers=split_layers(config.model.num_layers, teams), stage_replicas=()
        )
    reps = [max(1, a) for a in alive]
    while sum(reps) > teams:
        reps[reps.index(max(reps))] -= 1
    while sum(reps) < teams:
        reps[reps.index(min(reps))] += 1
    return replace(current, stage_replicas=tuple(reps))
