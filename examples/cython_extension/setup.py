"""pip install cython cbn, then: python setup.py build_ext --inplace"""

from Cython.Build import cythonize
from setuptools import Extension, setup

import cbn

standardize = Extension("standardize", ["standardize.pyx"], include_dirs=[cbn.get_include()])
setup(name="standardize", ext_modules=cythonize([standardize], language_level=3))
