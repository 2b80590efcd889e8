/* Vulkan's headers of before December 2023 (Debian 12 and Raspberry Pi OS 12 have 1.3.239) do not know the extension
 * VK_EXT_layer_settings. llama.cpp's ggml-vulkan.cpp names three of its types, for a validation layer that this build
 * does not have. Here they are, as newer headers lay them out (VkLayerSettingEXT, VkLayerSettingsCreateInfoEXT); with
 * those, this file is empty. llama.cmake includes it into that one source.
 */
#ifndef EDGE_EMBED_OLD_VULKAN_H
#define EDGE_EMBED_OLD_VULKAN_H

#include <vulkan/vulkan_core.h>

#ifndef VK_EXT_layer_settings

#include <cstdint>
#include <vector>

namespace vk {

enum class LayerSettingTypeEXT { eBool32 = 0 };

struct LayerSettingEXT {
    const char * layer_name;
    const char * setting_name;
    LayerSettingTypeEXT type;
    uint32_t value_count;
    const void * values;
};

struct LayerSettingsCreateInfoEXT {
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & settings)
        : count(static_cast<uint32_t>(settings.size())), first(settings.data()) {}

    int32_t structure_type = 1000496000; /* VK_STRUCTURE_TYPE_LAYER_SETTINGS_CREATE_INFO_EXT */
    const void * next = nullptr;
    uint32_t count;
    const LayerSettingEXT * first;
};

}  // namespace vk

#endif
#endif
