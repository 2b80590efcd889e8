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

# 3. Kernels for x86 processors: see native/hook.cpp. ggml-cpu.cpp alone is told that there is a KleidiAI (an Arm
#    library), because that is where kernels can be hooked in without a change to the sources.
function(edge_embed_add_kernels)
    if(NOT TARGET ggml-cpu OR MSVC OR GGML_CPU_KLEIDIAI OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
        return()
    endif()
    get_target_property(ggml_src ggml-cpu SOURCE_DIR)
    set(hook "${ggml_src}/ggml-cpu/ggml-cpu.cpp")
    if(NOT EXISTS "${hook}")
        message(WARNING "edge-embed: ${hook} is gone, so the library is built without the kernels")
        return()
    endif()
    foreach(kernel hook attention gelu products)
        target_sources(ggml-cpu PRIVATE "${edge_embed_native}/${kernel}.cpp")
    endforeach()
    set_property(SOURCE "${hook}" TARGET_DIRECTORY ggml-cpu APPEND PROPERTY COMPILE_DEFINITIONS GGML_USE_CPU_KLEIDIAI)
endfunction()
set(edge_embed_native "${CMAKE_CURRENT_LIST_DIR}/native")
cmake_language(DEFER DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" CALL edge_embed_add_kernels)

# 4. Where llama.cpp is built with OpenVINO (build.py --openvino), its library is left out of the wheel by that project's
#    list. It has to find those of OpenVINO, which stay where they are, beside the folder that CMake found it by.
function(edge_embed_install_openvino)
    if(TARGET ggml-openvino)
        llama_cpp_python_install_target(ggml-openvino)
        get_filename_component(libs "${OpenVINO_DIR}/../libs" ABSOLUTE)
        set_target_properties(ggml-openvino PROPERTIES INSTALL_RPATH "$ORIGIN;${libs}")
    endif()
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" CALL edge_embed_install_openvino)
