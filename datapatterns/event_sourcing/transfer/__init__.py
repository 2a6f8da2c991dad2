"""Events that come from elsewhere or go there: imports, exports, other libraries."""
