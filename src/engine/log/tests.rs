use super::*;
use LogCause::{BadConfig, BadModel, MissingFile, OutOfDeviceMemory, OutOfMemory, PortBusy};

fn find(kind: EngineKind, text: &str) -> Option<LogFinding> {
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let from = lines.len().saturating_sub(100);
    death_cause(kind, &lines[from..])
}

fn cause(kind: EngineKind, text: &str) -> Option<LogCause> {
    find(kind, text).map(|finding| finding.cause)
}

fn llama(text: &str) -> Option<LogCause> {
    cause(EngineKind::LlamaServer, text)
}

macro_rules! deaths {
    ($($name:literal => $cause:expr,)*) => {
        [$((include_str!(concat!("../testdata/", $name, ".txt")), $cause, $name)),*]
    };
}

#[test]
fn each_death_of_the_real_llama_server_is_told_from_its_log() {
    let deaths = deaths! {
        "missing" => MissingFile,
        "mmproj_missing" => MissingFile,
        "lora_missing" => MissingFile,
        "template_missing" => MissingFile,
        "truncated" => BadModel,
        "header_cut" => BadModel,
        "garbage" => BadModel,
        "empty" => BadModel,
        "directory" => BadModel,
        "vocab_only" => BadModel,
        "unknown_arch" => BadModel,
        "mmproj_bad" => BadModel,
        "bad_flag" => BadConfig,
        "bad_value" => BadConfig,
        "bad_enum" => BadConfig,
        "no_value" => BadConfig,
        "port_busy" => PortBusy,
        "socket_busy" => PortBusy,
        "context_too_large" => OutOfMemory,
        "kv_cache_too_large" => OutOfMemory,
        "bad_alloc_in_loader" => OutOfMemory,
        "bad_alloc_in_vocabulary" => OutOfMemory,
        "mmap_failed" => OutOfMemory,
        "assert_mem_buffer" => OutOfMemory,
    };
    for (text, expected, name) in deaths {
        assert_eq!(llama(text), Some(expected), "{name}:\n{text}");
    }
}

#[test]
fn a_refused_thread_may_be_memory_or_a_limit_and_is_not_guessed() {
    assert_eq!(llama(include_str!("../testdata/thread_refused.txt")), None);
}

#[test]
fn the_finding_is_the_line_that_says_most() {
    let line = |text| find(EngineKind::LlamaServer, text).unwrap().line;
    insta::assert_snapshot!(
        line(include_str!("../testdata/truncated.txt")),
        @"llama_model_load: error loading model: tensor 'blk.16.ffn_down.weight' data is not within the file bounds, model is corrupted or incomplete"
    );
    insta::assert_snapshot!(
        line(include_str!("../testdata/port_busy.txt")),
        @"start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18199"
    );
    insta::assert_snapshot!(
        line(include_str!("../testdata/bad_value.txt")),
        @r#"error while handling argument "--ctx-size": stoi"#
    );
}

#[test]
fn a_failed_allocation_on_a_device_outranks_what_follows_from_it() {
    let deaths = [
        "0.00.100.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory\n\
         0.00.100.050 E ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 9437184000\n\
         0.00.100.100 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache\n\
         0.00.100.200 E srv  llama_server: exiting due to model loading error",
        "0.00.100.000 E llama_model_load: error loading model: unable to allocate ROCm1 buffer",
        "9.01.100.000 E CUDA error: out of memory\n\
         9.01.100.001 E   current device: 0, in function alloc at /build/ggml-cuda.cu:545\n\
         9.01.100.002 E   cuMemCreate(&handle, reserve_size, &prop, 0)\n\
         /build/llama.cpp/ggml/src/ggml-cuda/ggml-cuda.cu:109: CUDA error",
        "0.00.100.000 E ggml_metal_buffer_init: error: failed to allocate buffer, size =  4096.00 MiB",
        "0.00.100.000 E ggml_metal_buffer_type_alloc_buffer: failed to allocate Metal buffer of 4096 bytes (out of memory)",
        "0.00.100.000 I srv    load_model: loading model 'a.gguf'\n\
         ggml_vulkan: Device memory allocation of size 1073741824 failed.\n\
         ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory\n\
         0.00.100.100 E llama_model_load: error loading model: unable to allocate Vulkan0 buffer",
    ];
    for text in deaths {
        assert_eq!(llama(text), Some(OutOfDeviceMemory), "{text}");
    }
}

#[test]
fn pinned_memory_and_buffers_of_the_host_are_the_hosts() {
    let text =
        "0.00.1.1 E llama_model_load: error loading model: unable to allocate CUDA_Host buffer";
    assert_eq!(llama(text), Some(OutOfMemory));
    let text =
        "terminate called after throwing an instance of 'St9bad_alloc'\n  what():  std::bad_alloc";
    assert_eq!(llama(text), Some(OutOfMemory));
    let text = "0.00.1.1 E llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers";
    assert_eq!(llama(text), Some(OutOfMemory));
}

#[test]
fn what_the_engine_recovers_from_and_what_is_no_memory_is_no_death() {
    let harmless = [
        "0.00.100.000 W llama_context: compute buffer allocation failed, retrying without pipeline parallelism",
        "0.00.100.000 D ggml_cuda_host_malloc: failed to allocate 10.00 MiB of pinned memory: out of memory",
        "0.00.100.000 W common_fit_params: failed to fit params to free device memory: was unable to fit",
        "0.00.100.000 E find_slot: failed to find free space in the KV cache, retrying with smaller batch size",
        "0.00.100.000 E srv  update_slots: Context size has been exceeded.",
        "0.00.100.000 E CUDA error: an illegal memory access was encountered",
        "0.00.100.000 E ggml_metal_init: error: failed to allocate context",
        "/build/llama.cpp/ggml/src/ggml.c:1644: GGML_ASSERT(n_tokens > 0) failed",
    ];
    for line in harmless {
        assert_eq!(llama(line), None, "{line}");
    }
}

#[test]
fn the_same_words_in_an_echoed_prompt_are_nobodys_death() {
    let echoes = [
        "0.01.000.000 I slot launch_slot_: id  0 | task 0 | prompt: CUDA error: out of memory",
        "0.01.000.000 W srv  operator(): got exception: {\"message\":\"error loading model: std::bad_alloc\"}",
        "0.01.000.000 E srv  operator(): parse error near 'cudaMalloc failed: out of memory'",
    ];
    for echo in echoes {
        assert_eq!(llama(echo), None, "{echo}");
    }
    // The lines of a prompt that was printed at the highest verbosity.
    let text = "0.00.001.000 I srv  llama_server: initializing ...\n\
                0.01.000.000 D slot update_slots: prompt:\n\
                error: invalid argument: --bogus\n\
                ggml_aligned_malloc: insufficient memory (attempted to allocate 9.00 MB)\n\
                gguf_init_from_reader: failed to read magic\n\
                why does std::bad_alloc appear?";
    assert_eq!(llama(text), None);
}

#[test]
fn a_prompt_printed_line_by_line_is_nobodys_death_whatever_stands_in_it() {
    let lines = [
        "CUDA error: out of memory",
        "ROCm error: out of memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "  what():  std::bad_alloc",
        "terminate called after throwing an instance of 'vk::OutOfDeviceMemoryError'",
        "ggml_vulkan: Device memory allocation of size 1073741824 failed.",
        "ggml_metal_synchronize: error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "/a/ggml.c:1644: GGML_ASSERT(ctx->mem_buffer != NULL) failed",
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory",
    ];
    for line in lines {
        let text = format!(
            "0.00.001.000 I srv  llama_server: initializing ...\n\
             0.01.000.000 D slot update_slots: id  0 | task 0 | prompt: '<|im_start|>user\n\
             {line}\n\
             <|im_end|>'"
        );
        assert_eq!(llama(&text), None, "{line}");
        let quoted = format!("0.00.001.000 I srv  llama_server: user said {line}");
        assert_eq!(llama(&quoted), None, "{line}");
        let spoken = format!("0.00.001.000 E srv  operator(): bad request: {line}");
        assert_eq!(llama(&spoken), None, "{line}");
    }
}

#[test]
fn a_failure_that_it_lived_on_after_is_no_death() {
    let failure = "0.05.000.000 E graph_reserve: failed to allocate graph\n\
                   0.05.000.100 E srv  update_slots: Compute error.\n";
    assert_eq!(llama(failure), Some(OutOfMemory));
    for life in [
        "0.06.000.000 I slot launch_slot_: id  3 | task 7 | processing task, is_child = 0",
        "0.06.000.000 I slot print_timing: id  3 | task 7 |       total time =     196.18 ms",
    ] {
        assert_eq!(llama(&format!("{failure}{life}")), None, "{life}");
    }
}

#[test]
fn each_backend_says_in_its_own_words_that_its_memory_is_full() {
    let logged = |line: &str| format!("9.01.100.000 E {line}");
    let deaths = [
        // HIP and MUSA builds of the same source.
        logged("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 900.00 MiB on device 1: hipMalloc failed: out of memory"),
        logged("ROCm error: out of memory"),
        logged("MUSA error: out of memory"),
        logged("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        logged("ROCm error: HIPBLAS_STATUS_ALLOC_FAILED"),
        // While it computes; the text is the system's.
        logged("ggml_metal_synchronize: error: command buffer 0 failed with status 5\n\
             9.01.100.001 E ggml_metal_synchronize: error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"),
        "ggml_vulkan: No suitable memory type found: ErrorOutOfDeviceMemory".to_owned(),
        "ggml_vulkan: Requested buffer size exceeds device memory allocation limit: ErrorOutOfDeviceMemory".to_owned(),
        "terminate called after throwing an instance of 'vk::OutOfDeviceMemoryError'\n  what():  vk::Queue::submit: ErrorOutOfDeviceMemory".to_owned(),
        "CUDA error: out of memory".to_owned(),
    ];
    for text in deaths {
        assert_eq!(llama(&text), Some(OutOfDeviceMemory), "{text}");
    }
    let others = [
        logged("ROCm error: an illegal memory access was encountered"),
        logged(
            "ggml_metal_synchronize: error: Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)",
        ),
        "terminate called after throwing an instance of 'vk::DeviceLostError'".to_owned(),
        "ggml_vulkan: device lost on Vulkan0".to_owned(),
    ];
    for text in others {
        assert_eq!(llama(&text), None, "{text}");
    }
}

#[test]
fn memory_of_the_host_is_told_from_a_devices() {
    for line in [
        "9.01.100.000 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 1073741824",
        "9.01.100.000 E ggml_aligned_malloc: insufficient memory (attempted to allocate  41.96 MB)",
        "9.01.100.000 E llama_context: failed to allocate output buffer of size 9.00 MiB",
        "ggml_vulkan: Memory allocation of size 1073741824 failed.",
    ] {
        assert_eq!(llama(line), Some(OutOfMemory), "{line}");
    }
}

#[test]
fn a_refused_argument_is_seen_past_a_warning_of_the_parser() {
    let text = "0.00.000.887 W DEPRECATED: argument '--pooling' specified multiple times\n\
                error while handling argument \"--pooling\": invalid value";
    assert_eq!(llama(text), Some(BadConfig));
}

#[test]
fn a_log_without_prefixes_is_understood() {
    let text = "build: 4500 (abc) with gcc\n\
                ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory\n\
                main: exiting due to model loading error";
    assert_eq!(llama(text), Some(OutOfDeviceMemory));
    assert_eq!(
        llama("main: couldn't bind HTTP server socket, hostname: 127.0.0.1"),
        Some(PortBusy)
    );
    assert_eq!(llama("E gguf_init_from_reader: failed to read magic"), Some(BadModel));
}

#[test]
fn the_last_of_two_causes_of_one_weight_counts() {
    let text = "0.00.1.1 E gguf_init_from_reader: failed to read magic\n\
                0.00.1.2 E srv start: couldn't bind HTTP server socket, hostname: x, port: 1";
    assert_eq!(llama(text), Some(PortBusy));
}

#[test]
fn a_long_line_is_cut_between_characters() {
    let text = format!("error: invalid argument: {}", "é".repeat(400));
    let finding = find(EngineKind::LlamaServer, &text).unwrap();
    assert!(finding.line.len() <= 300 && finding.line.len() > 296);
}

#[test]
fn the_worker_says_itself_what_its_exit_code_does_not() {
    let candle = |text| cause(EngineKind::Candle, text);
    assert_eq!(candle("memory allocation of 1073741824 bytes failed"), Some(OutOfMemory));
    assert_eq!(
        candle("error: out of memory while loading `x`: failed to allocate"),
        Some(OutOfMemory)
    );
    assert_eq!(
        candle("error: out of memory while loading `x`: DriverError(CUDA_ERROR_OUT_OF_MEMORY)"),
        Some(OutOfDeviceMemory)
    );
    assert_eq!(candle("error: unexpected argument '--bogus' found"), Some(BadConfig));
    assert_eq!(
        candle("error: out of memory while loading `/models/CUDA/Metal.gguf`: failed to allocate"),
        Some(OutOfMemory)
    );
    // Its exit code says that better than a guess from the text.
    assert_eq!(candle("error: the model file is cut short"), None);
}

#[test]
fn common_python_servers_are_understood() {
    let command = |text| cause(EngineKind::Command, text);
    assert_eq!(
        command("torch.OutOfMemoryError: CUDA out of memory. Tried …"),
        Some(OutOfDeviceMemory)
    );
    assert_eq!(
        command("ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 1)"),
        Some(PortBusy)
    );
    for line in [
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: MPS backend out of memory (MPS allocated: 9.06 GB).",
        "(EngineCore_DP0 pid=77) ValueError: No available memory for the cache blocks.",
        "ValueError: Free memory on device (3.1/23.6 GiB) on startup is less than desired",
        "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    ] {
        assert_eq!(command(line), Some(OutOfDeviceMemory), "{line}");
    }
    for line in [
        "OSError: [Errno 12] Cannot allocate memory",
        "fatal error: runtime: out of memory",
        "memory allocation of 1073741824 bytes failed",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory",
    ] {
        assert_eq!(command(line), Some(OutOfMemory), "{line}");
    }
    let asked = "the user asks: [METAL] Command buffer execution failed: Insufficient Memory";
    assert_eq!(command(asked), None);
}

#[test]
fn a_programs_errors_are_judged_only_where_they_are_known() {
    let command = |text| cause(EngineKind::Command, text);
    assert_eq!(command("error: socket `/run/a.sock` is in use"), Some(PortBusy));
    assert_eq!(command("listen tcp 127.0.0.1:1: bind: address already in use"), Some(PortBusy));
    assert_eq!(command("error: the licence server does not answer"), None);
    assert_eq!(command("error: invalid argument: --bogus"), Some(BadConfig));
    assert_eq!(command("serve.py: error: unrecognized arguments: --bogus"), Some(BadConfig));
    assert_eq!(command("MemoryError"), Some(OutOfMemory));
    assert_eq!(
        command("terminate called after throwing an instance of 'std::bad_alloc'"),
        Some(OutOfMemory)
    );
    assert_eq!(command("INFO: user asked about MemoryError: and CUDA out of memory"), None);
}

#[test]
fn the_ready_line_of_each_engine_is_known() {
    let llama = |line| is_ready_line(EngineKind::LlamaServer, line);
    assert!(llama("0.00.588.892 I srv  llama_server: model loaded"));
    assert!(llama("0.00.588.892 I srv  llama_server: listening on unix:///run/x.sock"));
    assert!(llama("main: server is listening on http://127.0.0.1:8080 - starting the main loop"));
    assert!(!llama("0.00.003.582 I srv    load_model: loading model 'model loaded.gguf'"));
    assert!(is_ready_line(EngineKind::Candle, "ready in 210 ms"));
    assert!(is_ready_line(EngineKind::Command, "INFO:     Application startup complete."));
}

#[test]
fn progress_is_read_where_it_is_told() {
    assert_eq!(progress(EngineKind::Candle, "loading: 42 %"), Some(42));
    assert_eq!(progress(EngineKind::Command, "loading: 7%"), Some(7));
    for line in ["loading: 420 %", "loading: x %", "loading: %", "loading"] {
        assert_eq!(progress(EngineKind::Candle, line), None, "{line}");
    }
}
