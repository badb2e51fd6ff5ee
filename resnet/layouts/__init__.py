"""Our classifiers' weights under the names of other libraries."""
