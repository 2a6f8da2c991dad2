"""A till with a web API: who has written reads what they wrote."""

from till_api.app import create_app
from till_api.shop import SALES_TABLE, SalesByProduct, declare_layer

__all__ = ["SALES_TABLE", "SalesByProduct", "create_app", "declare_layer"]
