# An application of Django's; with_django.py has what would be in it.
