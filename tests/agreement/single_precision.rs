//! A model with its weights written out in single precision: then neither engine rounds what it multiplies.

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use candle_core::{
    Device,
    quantized::{GgmlDType, QTensor, gguf_file, gguf_file::Value},
};

/// Writes what `model` holds into a file in `folder`, four bytes a weight.
pub(crate) fn write(folder: &Path, model: &Path) -> PathBuf {
    let mut file = File::open(model).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let tensors: Vec<(&str, QTensor)> = content
        .tensor_infos
        .keys()
        .map(|name| {
            let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
            let floats = tensor.dequantize(&Device::Cpu).unwrap();
            (name.as_str(), QTensor::quantize(&floats, GgmlDType::F32).unwrap())
        })
        .collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let metadata = content.metadata.iter().filter(|(key, _)| *key != "general.file_type");
    let metadata: Vec<(&str, &Value)> =
        metadata.map(|(key, value)| (key.as_str(), value)).collect();
    let path = folder.join("single-precision.gguf");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    path
}
