//! Whether there is a GPU.

use std::path::Path;

/// The kernel's doors to GPUs that engines compute on: NVIDIA's, AMD's, and any that draws.
/// Source: the NVIDIA and `amdkfd` drivers, `Documentation/gpu/drm-uapi.rst` of Linux.
const DOORS: [&str; 3] = ["/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128"];

/// Tells whether the machine has a GPU that an engine may be able to use.
pub fn has_gpu() -> bool {
    cfg!(target_os = "macos") || DOORS.iter().any(|door| Path::new(door).exists())
}
