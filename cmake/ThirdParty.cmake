# Finds the two header-only libraries, in this order: the Python build environment (wheels
# cmeel-eigen and napf), then third_party/ (an sdist bundles them there), then, for Eigen only,
# the system. A system nanoflann is not looked for: 1.4, which Debian ships, does not compile here.

set(_prefixes "")
if(NOT Python_EXECUTABLE)
  find_package(Python COMPONENTS Interpreter QUIET)
endif()
if(Python_EXECUTABLE)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import sys; print(';'.join(p for p in sys.path if p))"
    OUTPUT_VARIABLE _sys_path OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  foreach(_path IN LISTS _sys_path)
    file(TO_CMAKE_PATH "${_path}" _path)
    list(APPEND _prefixes "${_path}/cmeel.prefix/include/eigen3" "${_path}/include")
  endforeach()
endif()
list(APPEND _prefixes "${CMAKE_CURRENT_SOURCE_DIR}/third_party/eigen3"
     "${CMAKE_CURRENT_SOURCE_DIR}/third_party/nanoflann")

find_path(DELFSEARCH_EIGEN_INCLUDE_DIR Eigen/Core PATHS ${_prefixes} NO_DEFAULT_PATH)
if(NOT DELFSEARCH_EIGEN_INCLUDE_DIR)
  find_path(DELFSEARCH_EIGEN_INCLUDE_DIR Eigen/Core PATH_SUFFIXES eigen3)
endif()
if(NOT DELFSEARCH_EIGEN_INCLUDE_DIR)
  message(FATAL_ERROR "Eigen was not found: pip install cmeel-eigen, or set "
                      "DELFSEARCH_EIGEN_INCLUDE_DIR to the folder that holds Eigen/Core")
endif()

find_path(DELFSEARCH_NANOFLANN_INCLUDE_DIR nanoflann.hpp PATHS ${_prefixes} NO_DEFAULT_PATH)

add_library(delfsearch_eigen INTERFACE)
target_include_directories(delfsearch_eigen SYSTEM INTERFACE
                           $<BUILD_INTERFACE:${DELFSEARCH_EIGEN_INCLUDE_DIR}>)
target_compile_definitions(delfsearch_eigen INTERFACE EIGEN_MPL2_ONLY)
