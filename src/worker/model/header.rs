//! The header of a GGUF file: read, checked against the size of the file, asked by key.
//!
//! Source: the GGUF specification in ggml's `docs/gguf.md`.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
    sync::Arc,
};

use candle_core::quantized::{GgmlDType, gguf_file};
use memmap2::Mmap;

use crate::{
    spec::Bytes,
    worker::exit::{Ending, first_line},
};

/// A GGUF file whose every tensor lies inside the file.
#[derive(Debug)]
pub(crate) struct Header {
    content: gguf_file::Content,
    file: Arc<Mmap>,
}

/// Where one tensor lies and what it is.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub(crate) dtype: GgmlDType,
    /// Outermost dimension first.
    pub(crate) dims: Vec<usize>,
    offset: u64,
    pub(crate) length: usize,
}

impl Header {
    /// Opens and checks the file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, Ending> {
        let unreadable = |error: io::Error| {
            Ending::missing_file(format!("cannot read model `{}`: {error}", path.display()))
        };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(Ending::missing_file(format!(
                "cannot read model `{}`: it is not a file",
                path.display()
            )));
        }
        let mut reader = Counted { inner: BufReader::with_capacity(1 << 20, &file), position: 0 };
        let content = gguf_file::Content::read(&mut reader).map_err(|error| {
            let problem = match (metadata.len(), first_line(&error)) {
                (0, _) => "it is empty".to_owned(),
                (_, text) if text.contains("failed to fill whole buffer") => {
                    "it ends too early".to_owned()
                }
                (_, text) => text,
            };
            let path = path.display();
            Ending::bad_model(format!("`{path}` is not a whole GGUF file: {problem}"))
        })?;
        let file = Arc::new(map(&file).map_err(unreadable)?);
        let header = Self { content, file };
        header.check_bounds(path)?;
        Ok(header)
    }

    fn check_bounds(&self, path: &Path) -> Result<(), Ending> {
        let size = u64::try_from(self.file.len()).unwrap_or(u64::MAX);
        for name in self.content.tensor_infos.keys() {
            let end = self
                .extent(name)?
                .and_then(|extent| extent.offset.checked_add(u64::try_from(extent.length).ok()?));
            if end.is_none_or(|end| end > size) {
                return Err(Ending::bad_model(format!(
                    "`{}` is truncated: tensor `{name}` reaches beyond the {} of the file",
                    path.display(),
                    Bytes(size)
                )));
            }
        }
        Ok(())
    }

    /// Gives the place of tensor `name`, `None` if the file has no such tensor.
    pub(crate) fn extent(&self, name: &str) -> Result<Option<Extent>, Ending> {
        let Some(info) = self.content.tensor_infos.get(name) else { return Ok(None) };
        let dims = info.shape.dims().to_vec();
        let block = info.ggml_dtype.block_size();
        let elements =
            dims.iter().try_fold(1_usize, |product, dimension| product.checked_mul(*dimension));
        let fault =
            || Ending::bad_model(format!("tensor `{name}` has the impossible shape {dims:?}"));
        let elements = elements.filter(|n| *n > 0).ok_or_else(fault)?;
        if dims.last().is_none_or(|row| row % block != 0) {
            return Err(fault());
        }
        let length =
            (elements / block).checked_mul(info.ggml_dtype.type_size()).ok_or_else(fault)?;
        let offset = self.content.tensor_data_offset.checked_add(info.offset).ok_or_else(fault)?;
        Ok(Some(Extent { dtype: info.ggml_dtype, dims, offset, length }))
    }

    /// Gives the file, mapped into memory.
    pub(crate) fn file(&self) -> &Arc<Mmap> {
        &self.file
    }

    /// Gives the bytes of a tensor.
    pub(crate) fn bytes(&self, extent: &Extent) -> &[u8] {
        extent.range().and_then(|range| self.file.get(range)).unwrap_or_default()
    }

    /// Gives the bytes all tensors take in the file.
    pub(crate) fn tensor_bytes(&self) -> Result<u64, Ending> {
        let mut sum = 0_u64;
        for name in self.content.tensor_infos.keys() {
            let length = self.extent(name)?.map_or(0, |extent| extent.length);
            sum = sum.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(sum)
    }

    /// Gives a whole, non-negative number of any integer type.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        use gguf_file::Value;
        match self.content.metadata.get(key)? {
            Value::I8(n) => u64::try_from(*n).ok(),
            Value::I16(n) => u64::try_from(*n).ok(),
            Value::I32(n) => u64::try_from(*n).ok(),
            Value::I64(n) => u64::try_from(*n).ok(),
            value @ (Value::U8(_) | Value::U16(_) | Value::U32(_) | Value::U64(_)) => {
                value.to_u64().ok()
            }
            Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => {
                None
            }
        }
    }

    pub(crate) fn float(&self, key: &str) -> Option<f32> {
        self.content.metadata.get(key)?.to_f32().ok()
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.content.metadata.get(key)?.to_bool().ok()
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.content.metadata.get(key)?.to_string().ok().map(String::as_str)
    }

    /// Gives the elements that are texts.
    pub(crate) fn texts(&self, key: &str) -> Option<Vec<&str>> {
        let list = self.content.metadata.get(key)?.to_vec().ok()?;
        Some(list.iter().filter_map(|value| value.to_string().ok().map(String::as_str)).collect())
    }

    /// Gives the elements that are 32-bit floats.
    pub(crate) fn floats(&self, key: &str) -> Option<Vec<f32>> {
        let list = self.content.metadata.get(key)?.to_vec().ok()?;
        Some(list.iter().filter_map(|value| value.to_f32().ok()).collect())
    }

    /// Gives the elements that are 32-bit whole numbers.
    pub(crate) fn numbers(&self, key: &str) -> Option<Vec<u32>> {
        let list = self.content.metadata.get(key)?.to_vec().ok()?;
        let number = |value: &gguf_file::Value| {
            value.to_u32().ok().or_else(|| u32::try_from(value.to_i32().ok()?).ok())
        };
        Some(list.iter().filter_map(number).collect())
    }
}

impl Extent {
    /// Gives where in the file the tensor lies.
    pub(crate) fn range(&self) -> Option<Range<usize>> {
        let start = usize::try_from(self.offset).ok()?;
        Some(start..start.checked_add(self.length)?)
    }

    /// A tensor of a file of another format.
    pub(super) fn at(dtype: GgmlDType, dims: Vec<usize>, offset: u64, length: usize) -> Self {
        Self { dtype, dims, offset, length }
    }

    /// Gives `count` rows of a matrix from row `first` on.
    pub(crate) fn rows(&self, first: usize, count: usize) -> Option<Self> {
        let [rows, width] = *self.dims.as_slice() else { return None };
        if first.checked_add(count)? > rows {
            return None;
        }
        let row = self.length.checked_div(rows)?;
        let offset = self.offset.checked_add(u64::try_from(row.checked_mul(first)?).ok()?)?;
        let length = row.checked_mul(count)?;
        Some(Self { dtype: self.dtype, dims: vec![count, width], offset, length })
    }

    /// A tensor that is all of a file.
    #[cfg(test)]
    pub(crate) fn whole(dtype: GgmlDType, dims: Vec<usize>, length: usize) -> Self {
        Self { dtype, dims, offset: 0, length }
    }
}

/// Maps a file: its pages are shared with whoever else reads it, and are no private memory.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: a mapping is sound as long as nobody changes the file. A model is written once and
    // then only read; whoever cuts it while it is served ends the worker by a signal, which its
    // supervisor sees, and whoever overwrites it in place changes the weights, as with any engine
    // that maps its models. Copying all weights would double their memory to guard against that.
    #[expect(unsafe_code, reason = "no mapping of a file is safe by type")]
    unsafe {
        Mmap::map(file)
    }
}

/// A reader that knows its position: the header's parser asks for it once a text, and a system
/// call for each of a hundred thousand of them would double the time to load.
struct Counted<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position = self.position.saturating_add(u64::try_from(count).unwrap_or(0));
        Ok(count)
    }
}

impl<R: Seek> Seek for Counted<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = self.inner.seek(to)?;
        Ok(self.position)
    }

    fn stream_position(&mut self) -> io::Result<u64> {
        Ok(self.position)
    }
}
