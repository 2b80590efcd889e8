# What edge-embed adds to a build of llama.cpp, whoever runs it: pip, where CMake reads this file right after
# llama-cpp-python's own project() line because of -DCMAKE_PROJECT_llama_cpp_INCLUDE=<this file>, and cmake/CMakeLists.txt
# beside it, which includes it. What a preset of cmake/CMakePresets.json asks for is known by then.

# 1. A sound AMX intrinsic for GCC before 14: see sound_amx.h.
if(NOT MSVC)
    add_compile_options(
        "$<$<COMPILE_LANGUAGE:C,CXX>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/sound_amx.h\">")
endif()

# 2. libllama-common (chat templates, HTTP, argument parsing) is switched on by force in the cache, though the Python
#    package neither installs nor loads it. A normal variable of the same name wins over the cache, also in the
#    directories below.
set(LLAMA_BUILD_COMMON OFF)

# 3. What a GPU or OpenVINO needs, as far as this machine has it.
if(EDGE_EMBED_CUDA_ARCHITECTURES AND NOT CMAKE_CUDA_ARCHITECTURES)
    find_package(CUDAToolkit REQUIRED)
    execute_process(COMMAND "${CUDAToolkit_NVCC_EXECUTABLE}" --list-gpu-arch OUTPUT_VARIABLE edge_embed_known
        COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX REPLACE "[^0-9]+" ";" edge_embed_known "${edge_embed_known}")
    foreach(architecture ${EDGE_EMBED_CUDA_ARCHITECTURES})
        string(REGEX MATCH "^[0-9]+" number "${architecture}")
        if(number IN_LIST edge_embed_known)
            list(APPEND CMAKE_CUDA_ARCHITECTURES "${architecture}")
        else()
            message(STATUS "edge-embed: CUDA ${CUDAToolkit_VERSION} does not know architecture ${architecture}")
        endif()
    endforeach()
    message(STATUS "edge-embed: CUDA architectures ${CMAKE_CUDA_ARCHITECTURES}")
endif()
if(GGML_OPENVINO AND NOT OpenVINO_DIR)
    # PyPI's package holds the libraries. It is looked for and not imported: that would start the telemetry package.
    # -I: pip's isolation of a build hides what is installed, and is itself switched off by it.
    find_program(EDGE_EMBED_PYTHON NAMES python3 python)
    execute_process(COMMAND "${EDGE_EMBED_PYTHON}" -I -c
            "import importlib.util as u; s = u.find_spec('openvino'); print(list(s.submodule_search_locations)[0] if s else '')"
        OUTPUT_VARIABLE edge_embed_openvino OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    if(NOT edge_embed_openvino)
        message(FATAL_ERROR "${EDGE_EMBED_PYTHON} has no OpenVINO: `${EDGE_EMBED_PYTHON} -m pip install --no-deps openvino` "
            "(what it depends on is a telemetry package, and is not needed)")
    endif()
    file(TO_CMAKE_PATH "${edge_embed_openvino}/cmake" edge_embed_openvino)
    set(OpenVINO_DIR "${edge_embed_openvino}" CACHE PATH "the folder of OpenVINOConfig.cmake")
endif()

# 4. Kernels for x86 processors: see native/hook.cpp. ggml-cpu.cpp alone is told that there is a KleidiAI (an Arm
#    library), because that is where kernels can be hooked in without a change to the sources. With
#    GGML_CPU_ALL_VARIANTS each variant is a library with kernels of its own.
function(edge_embed_add_kernels)
    if(MSVC OR GGML_CPU_KLEIDIAI OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
        return()
    endif()
    foreach(backend ${GGML_AVAILABLE_BACKENDS})
        if(NOT TARGET ${backend} OR NOT backend MATCHES "^ggml-cpu(-|$)")
            continue()
        endif()
        get_target_property(ggml_src ${backend} SOURCE_DIR)
        set(hook "${ggml_src}/ggml-cpu/ggml-cpu.cpp")
        if(NOT EXISTS "${hook}")
            message(WARNING "edge-embed: ${hook} is gone, so the library is built without the kernels")
            return()
        endif()
        foreach(kernel hook attention gelu products)
            target_sources(${backend} PRIVATE "${edge_embed_native}/${kernel}.cpp")
        endforeach()
    endforeach()
    if(hook)
        set_property(SOURCE "${hook}" DIRECTORY "${ggml_src}" APPEND
            PROPERTY COMPILE_DEFINITIONS GGML_USE_CPU_KLEIDIAI)
    endif()
endfunction()
set(edge_embed_native "${CMAKE_CURRENT_LIST_DIR}/native")
cmake_language(DEFER DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" CALL edge_embed_add_kernels)

# 5. Variants for Arm that this compiler has no name for (GCC 12 knows neither armv9.2-a nor SME). Their kernels gain
#    nothing from SME, so they are compiled for what else they promise: i8mm and SVE.
function(edge_embed_spell_variants)
    include(CheckCXXCompilerFlag)
    foreach(backend ${GGML_AVAILABLE_BACKENDS})
        if(NOT TARGET ${backend} OR NOT backend MATCHES "^ggml-cpu-armv")
            continue()
        endif()
        get_target_property(options ${backend} COMPILE_OPTIONS)
        string(REGEX MATCH "-march=[^;]*\\+sme" march "${options}")
        if(march)
            string(MAKE_C_IDENTIFIER "EDGE_EMBED_HAS${march}" known)
            check_cxx_compiler_flag("${march}" ${known})
            if(NOT ${known})
                string(REPLACE "armv9.2-a" "armv8.6-a" options "${options}")
                string(REPLACE "+sme" "" options "${options}")
                set_target_properties(${backend} PROPERTIES COMPILE_OPTIONS "${options}")
            endif()
        endif()
    endforeach()
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" CALL edge_embed_spell_variants)

# 6. Libraries that are left out of a wheel by llama-cpp-python's list: variants and OpenVINO's. The latter has to find
#    those of OpenVINO, which stay where they are, beside the folder that CMake found it by.
function(edge_embed_install)
    foreach(backend ${GGML_AVAILABLE_BACKENDS})
        if(COMMAND llama_cpp_python_install_target AND TARGET ${backend} AND backend MATCHES "^ggml-(cpu-|openvino)")
            llama_cpp_python_install_target(${backend})
        endif()
    endforeach()
    if(TARGET ggml-openvino)
        get_filename_component(libs "${OpenVINO_DIR}/../libs" ABSOLUTE)
        set_target_properties(ggml-openvino PROPERTIES INSTALL_RPATH "$ORIGIN;${libs}")
    endif()
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" CALL edge_embed_install)

# 7. Sources of llama.cpp that want a header of ours before anything else; each says why.
function(edge_embed_begin_with backend source header)
    if(NOT TARGET ${backend})
        return()
    endif()
    get_target_property(folder ${backend} SOURCE_DIR)
    if(NOT EXISTS "${folder}/${source}")
        message(FATAL_ERROR "edge-embed: ${folder}/${source} is gone, which ${header} mends")
    endif()
    set(option "-include" "${edge_embed_headers}/${header}")
    if(MSVC)
        set(option "/FI${edge_embed_headers}/${header}")
    endif()
    set_property(SOURCE "${folder}/${source}" DIRECTORY "${folder}" APPEND PROPERTY COMPILE_OPTIONS ${option})
endfunction()
function(edge_embed_mend)
    edge_embed_begin_with(ggml-vulkan ggml-vulkan.cpp old_vulkan.h)
    edge_embed_begin_with(ggml-openvino utils.cpp openvino_inputs.h)
endfunction()
set(edge_embed_headers "${CMAKE_CURRENT_LIST_DIR}")
cmake_language(DEFER DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" CALL edge_embed_mend)
