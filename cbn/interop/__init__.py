"""Drop-in functions for other conventions; import the module you want, e.g. cbn.interop.cs231n."""
