"""Attribution: carts and purchases that come after the join's window raise the value of earlier pairs."""
