# What edge-embed adds to the build of llama-cpp-python. CMake reads this file right after that project's own
# project() line, because the build is started with -DCMAKE_PROJECT_llama_cpp_INCLUDE=<this file>.

# 1. A sound AMX intrinsic for GCC before 14: see sound_amx.h.
if(NOT MSVC)
    add_compile_options(
        "$<$<COMPILE_LANGUAGE:C,CXX>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/sound_amx.h\">")
endif()

# 2. libllama-common (chat templates, HTTP, argument parsing) is switched on by force in the cache, though the Python
#    package neither installs nor loads it. A normal variable of the same name wins over the cache, also in the
#    directories below.
set(LLAMA_BUILD_COMMON OFF)
