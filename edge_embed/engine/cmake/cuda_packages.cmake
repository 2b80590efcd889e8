# CUDA's compiler and libraries out of Python's packages (`pip install 'edge-embed[cuda]'`), for a machine that has no
# toolkit of its own: neither root nor NVIDIA's installer is needed. What the user names or has on the PATH comes first.
#
# The packages hold what a toolkit does, but libraries by their versioned names alone, and no stub of the driver's library;
# so a folder of links is made that looks like a toolkit, and a stub. The libraries stay where they are: the runtime
# finds them by RPATH, as long as the environment that they were installed into is there.

set(toolkit "${CMAKE_BINARY_DIR}/cuda")
foreach(named "${CMAKE_CUDA_COMPILER}" "${CUDAToolkit_ROOT}" "$ENV{CUDACXX}" "$ENV{CUDAToolkit_ROOT}" "$ENV{CUDA_PATH}")
    string(FIND "${named}/" "${toolkit}/" ours)
    if(named AND NOT ours EQUAL 0)
        return()
    endif()
endforeach()
if(NOT CMAKE_HOST_SYSTEM_NAME STREQUAL "Linux")
    return()
endif()
if(CMAKE_CROSSCOMPILING)
    message(FATAL_ERROR "CUDA's libraries for ${CMAKE_SYSTEM_PROCESSOR} are not looked for on another machine: build this on "
        "the board, with the CUDA that it has, or name a toolkit that has nvcc for here and libraries for there: CUDACXX and "
        "CUDAToolkit_ROOT")
endif()
find_program(EDGE_EMBED_NVCC nvcc PATHS /usr/local/cuda/bin)
if(EDGE_EMBED_NVCC)
    get_filename_component(nvcc "${EDGE_EMBED_NVCC}" REALPATH)
    get_filename_component(nvcc "${nvcc}/../.." ABSOLUTE)
    find_path(EDGE_EMBED_CUBLAS cublas_v2.h HINTS "${nvcc}/include" "${nvcc}/targets/${CMAKE_SYSTEM_PROCESSOR}-linux/include")
    if(EDGE_EMBED_CUBLAS)
        return()
    endif()
    message(STATUS "edge-embed: ${EDGE_EMBED_NVCC} is a toolkit without cuBLAS, and is passed over")
endif()

# Not imported but looked for; the newest, where there are several.
execute_process(COMMAND "${EDGE_EMBED_PYTHON}" -I -c "
import importlib.util, pathlib
spec = importlib.util.find_spec('nvidia')
homes = [nvcc.parent.parent for one in (spec.submodule_search_locations if spec else ())
         for nvcc in pathlib.Path(one).glob('cu[0-9]*/bin/nvcc')]
print(max(homes, key=lambda home: int(home.name[2:]), default=''))"
    OUTPUT_VARIABLE home OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT home)
    message(FATAL_ERROR "CUDA's compiler was not found: no nvcc with cuBLAS on the PATH, and none among the packages of "
        "${EDGE_EMBED_PYTHON}: `pip install 'edge-embed[cuda]'`, or the distribution's or NVIDIA's toolkit")
endif()
message(STATUS "edge-embed: CUDA's compiler and libraries from ${home}")

file(MAKE_DIRECTORY "${toolkit}/lib")
foreach(entry bin include nvvm)
    file(CREATE_LINK "${home}/${entry}" "${toolkit}/${entry}" SYMBOLIC)
endforeach()
file(CREATE_LINK lib "${toolkit}/lib64" SYMBOLIC)
file(GLOB libraries "${home}/lib/*.a" "${home}/lib/*.so.*")
foreach(library ${libraries})
    get_filename_component(name "${library}" NAME)
    file(CREATE_LINK "${library}" "${toolkit}/lib/${name}" SYMBOLIC)
    string(REGEX REPLACE "[.]so[.].*" ".so" linked "${name}")
    if(NOT linked STREQUAL name)
        file(CREATE_LINK "${library}" "${toolkit}/lib/${linked}" SYMBOLIC)
    endif()
endforeach()
set(CMAKE_CUDA_COMPILER "${toolkit}/bin/nvcc" CACHE FILEPATH "CUDA's compiler")
set(CUDAToolkit_ROOT "${toolkit}" CACHE PATH "the folder of CUDA's toolkit")
list(APPEND CMAKE_INSTALL_RPATH "${home}/lib")

# The driver brings libcuda.so.1, so a machine without a GPU has none to link with. What ggml-cuda calls of it:
set(called cuDeviceGet cuDeviceGetAttribute cuGetErrorString cuMemAddressFree cuMemAddressReserve cuMemCreate
    cuMemGetAllocationGranularity cuMemMap cuMemRelease cuMemSetAccess cuMemUnmap)
list(TRANSFORM called REPLACE "(.+)" "STUB(\\1)\n")
string(CONCAT called ${called})
file(GENERATE OUTPUT "${toolkit}/stub.c" CONTENT "// 999: CUDA_ERROR_UNKNOWN
#define STUB(name) int name(void) { return 999; }
${called}")
add_library(edge_embed_cuda_stub SHARED "${toolkit}/stub.c")
set_target_properties(edge_embed_cuda_stub PROPERTIES OUTPUT_NAME cuda SOVERSION 1
    LIBRARY_OUTPUT_DIRECTORY "${toolkit}/stubs" COMPILE_OPTIONS "-fno-builtin")
add_library(CUDA::cuda_driver ALIAS edge_embed_cuda_stub)
