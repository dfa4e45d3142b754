"""Whether a network has room for the data, sees what it asks about, and does not see what it is to say."""

import warnings


def check_order(network: object, data: object) -> None:
    """Raise a ValueError where a network with `causal: false` would read the tokens that it is to predict; warn where a
    causal one does not see what it is asked about. Of networks and data that do not say, nothing is known."""
    causal = getattr(getattr(network, "config", None), "causal", None)
    if causal is False and getattr(data, "answers_ahead", False):
        raise ValueError(
            f"causal: false does not go with {type(data).__name__} of this kind: the network would read the tokens "
            "that it is to predict; set model.network.init_args.config.causal to true"
        )
    if causal is True and getattr(data, "sees_all", False):
        warnings.warn(
            "positions of this task are answered where they stand, out of the whole row, but the network is causal "
            "and does not see what comes later: set model.network.init_args.config.causal to false",
            stacklevel=2,
        )


def check_room(network: object, data: object) -> None:
    """Raise a ValueError where a training row, of a difficulty that enters late too, is longer than the network takes;
    the data is ready to make rows. Of networks and data that do not say, nothing is known."""
    limit = getattr(getattr(network, "config", None), "max_length", None)
    longest = getattr(data, "longest_row", lambda: 0)()
    if limit is not None and longest > limit:
        raise ValueError(
            f"training rows have up to {longest} tokens, and the network takes {limit}: raise "
            "model.network.init_args.config.max_length, or ask for less of the data (its length or difficulty)"
        )
