//! Weights from the file to where they are computed.

use candle_core::{Device, Result, Tensor, quantized::GgmlDType};

use super::{
    Model, Output,
    device::{DeviceLayer, Stacked},
    header::{Extent, Header},
    host::HostLayer,
    linear::Linear,
    matrix::{HostMatrix, pool},
    shape::{Shape, Stretch},
    to_f32,
};
use crate::worker::exit::Ending;

/// A load in progress: which file, which devices, and whom to tell how far it is.
#[derive(Debug)]
pub(crate) struct Loading<'a, F> {
    pub(crate) header: &'a Header,
    pub(crate) shape: Shape,
    /// Where the last `gpu_layers` layers go, and the output if one more is asked for.
    pub(crate) gpu: Option<(Device, usize)>,
    /// Called with the bytes read so far and in all.
    pub(crate) progress: F,
}

/// What is done to the rows of a matrix on its way in.
#[derive(Clone, Copy)]
enum Order {
    AsStored,
    /// Pairs `(2i, 2i+1)` of each head become `(i, i + half)`.
    Halves {
        heads: usize,
    },
}

impl<F: FnMut(u64, u64)> Loading<'_, F> {
    /// Reads all weights.
    pub(crate) fn run(mut self) -> std::result::Result<Model, Ending> {
        let total = self.header.tensor_bytes()?;
        let mut read = 0_u64;
        let embedding = self.host_matrix("token_embd.weight", None, &mut read)?;
        let (mut host, mut device) = (Vec::new(), Vec::new());
        for index in 0..self.shape.layers {
            match &self.gpu {
                Some((gpu, count)) if index.saturating_add(*count) >= self.shape.layers => {
                    device.push(self.device_layer(index, gpu, &mut read)?);
                }
                _ => host.push(self.host_layer(index, &mut read)?),
            }
            (self.progress)(read, total);
        }
        let output = self.output(embedding.rows, &mut read)?;
        let frequencies = self.frequencies()?;
        let near_frequencies = self.near_frequencies();
        (self.progress)(total, total);
        let (shape, pool) = (self.shape, pool());
        Ok(Model { shape, embedding, host, device, output, frequencies, near_frequencies, pool })
    }

    fn host_layer(&self, index: usize, read: &mut u64) -> std::result::Result<HostLayer, Ending> {
        let Shape { width, feed_forward, heads, head_width, .. } = self.shape;
        let (query, kv) = (heads * head_width, self.shape.kv_width());
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let bias =
            |part: &str, length| self.perhaps_floats(&format!("blk.{index}.{part}.bias"), length);
        let norm = |part: &str, length| self.perhaps_floats(&name(part), length);
        let norms = |[a, b]: [(&'static str, usize); 2]| {
            all(index, [a.0, b.0], [norm(a.0, a.1)?, norm(b.0, b.1)?])
        };
        let qkv = [("attn_q", query), ("attn_k", kv), ("attn_v", kv)];
        let [query_bias, key_bias, value_bias] = match bias("attn_qkv", query + kv * 2)? {
            Some(all) => {
                let (queries, rest) = all.split_at(query);
                let (keys, values) = rest.split_at(kv);
                [queries, keys, values].map(|part| Some(part.to_vec()))
            }
            None => [bias("attn_q", query)?, bias("attn_k", kv)?, bias("attn_v", kv)?],
        };
        let [query, key, value] = self.parts_of(index, Some("attn_qkv"), qkv, read)?;
        let inner = [("ffn_gate", feed_forward), ("ffn_up", feed_forward)];
        // Where there is no gate, the other matrix holds both, the gate first.
        let has_gate = self.header.extent(&name("ffn_gate"))?.is_some();
        let stacked = (!has_gate).then_some("ffn_up");
        let [gate, up] = self.parts_of(index, stacked, inner, read)?;
        let mut matrix = |part: &str, dims| self.host_matrix(&name(part), Some(dims), read);
        Ok(HostLayer {
            attention_norm: self.floats(&name("attn_norm"), width)?,
            biases: all(
                index,
                ["attn_q.bias", "attn_k.bias", "attn_v.bias"],
                [query_bias, key_bias, value_bias],
            )?,
            head_norms: norms([("attn_q_norm", head_width), ("attn_k_norm", head_width)])?,
            output: matrix("attn_output", (width, query.rows))?,
            post_norms: norms([("post_attention_norm", width), ("post_ffw_norm", width)])?,
            feed_forward_norm: self.floats(&name("ffn_norm"), width)?,
            down: matrix("ffn_down", (width, feed_forward))?,
            query,
            key,
            value,
            gate,
            up,
        })
    }

    fn device_layer(
        &self,
        index: usize,
        device: &Device,
        read: &mut u64,
    ) -> std::result::Result<DeviceLayer, Ending> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let Shape { width, feed_forward, heads, kv_heads, .. } = self.shape;
        let (query, kv) = (heads * self.shape.head_width, self.shape.kv_width());
        let qkv = [
            (name("attn_q"), query, Order::Halves { heads }),
            (name("attn_k"), kv, Order::Halves { heads: kv_heads }),
            (name("attn_v"), kv, Order::AsStored),
        ];
        let gate_up = [
            (name("ffn_gate"), feed_forward, Order::AsStored),
            (name("ffn_up"), feed_forward, Order::AsStored),
        ];
        Ok(DeviceLayer {
            attention_norm: self.vector(&name("attn_norm"), width, device)?,
            qkv: self.stacked(&qkv, device, read)?,
            output: self.linear(&name("attn_output"), (width, query), device, read)?,
            feed_forward_norm: self.vector(&name("ffn_norm"), width, device)?,
            gate_up: self.stacked(&gate_up, device, read)?,
            down: self.linear(&name("ffn_down"), (width, feed_forward), device, read)?,
            device: device.clone(),
        })
    }

    fn output(&self, vocabulary: usize, read: &mut u64) -> std::result::Result<Output, Ending> {
        let dims = (vocabulary, self.shape.width);
        let has_own = self.header.extent("output.weight")?.is_some();
        let norm = "output_norm.weight";
        if let Some((gpu, _)) = self.gpu.as_ref().filter(|(_, count)| *count > self.shape.layers) {
            // A model without an output matrix uses its embedding for both.
            let name = if has_own { "output.weight" } else { "token_embd.weight" };
            let norm = self.vector(norm, self.shape.width, gpu)?;
            return Ok(Output::Device { norm, matrix: self.linear(name, dims, gpu, read)? });
        }
        let norm = self.floats(norm, self.shape.width)?;
        let mut matrix = None;
        if has_own {
            matrix = Some(self.host_matrix("output.weight", Some(dims), read)?);
        }
        Ok(Output::Host { norm, matrix })
    }

    /// Maps a matrix of any height, or one of `dims`.
    fn host_matrix(
        &self,
        name: &str,
        dims: Option<(usize, usize)>,
        read: &mut u64,
    ) -> std::result::Result<HostMatrix, Ending> {
        let extent = match dims {
            Some(dims) => self.matrix(name, dims)?,
            None => self.extent(name)?,
        };
        let width = dims.map_or(self.shape.width, |(_, width)| width);
        if extent.dims.last() != Some(&width) {
            return Err(other_shape(name, &extent.dims, &format!("rows of {width}")));
        }
        self.mapped(name, &extent, read)
    }

    fn mapped(
        &self,
        name: &str,
        extent: &Extent,
        read: &mut u64,
    ) -> std::result::Result<HostMatrix, Ending> {
        let matrix = HostMatrix::new(self.header.file(), extent);
        let matrix = matrix.ok_or_else(|| wrong_shape(name, extent))?;
        matrix.touch();
        *read = read.saturating_add(u64::try_from(extent.length).unwrap_or(0));
        Ok(matrix)
    }

    /// Maps the matrices of `parts`, each by its own name or as rows of one that holds them all, if there may
    /// be one.
    fn parts_of<const N: usize>(
        &self,
        index: usize,
        whole: Option<&str>,
        parts: [(&str, usize); N],
        read: &mut u64,
    ) -> std::result::Result<[HostMatrix; N], Ending> {
        let width = self.shape.width;
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        let mut made = Vec::with_capacity(N);
        let whole = match whole.map(name) {
            Some(whole) if self.header.extent(&whole)?.is_some() => Some(whole),
            Some(_) | None => None,
        };
        if let Some(whole) = whole {
            let all = self.matrix(&whole, (rows, width))?;
            let mut first = 0_usize;
            for (_, rows) in parts {
                let part = all.rows(first, rows).ok_or_else(|| wrong_shape(&whole, &all))?;
                made.push(self.mapped(&whole, &part, read)?);
                first = first.saturating_add(rows);
            }
        } else {
            for (part, rows) in parts {
                made.push(self.host_matrix(&name(part), Some((rows, width)), read)?);
            }
        }
        made.try_into().map_err(|_| Ending::internal("a layer has all its parts"))
    }

    /// Gives a vector of `length` floats, if there is one of this name.
    fn perhaps_floats(
        &self,
        name: &str,
        length: usize,
    ) -> std::result::Result<Option<Vec<f32>>, Ending> {
        match self.header.extent(name)? {
            Some(_) => self.floats(name, length).map(Some),
            None => Ok(None),
        }
    }

    /// Gives a vector of `length` floats.
    fn floats(&self, name: &str, length: usize) -> std::result::Result<Vec<f32>, Ending> {
        let extent = self.extent(name)?;
        if extent.dims != [length] {
            return Err(other_shape(name, &extent.dims, &format!("[{length}]")));
        }
        let bytes = self.header.bytes(&extent).to_vec();
        let floats = extent.dtype.from_data(bytes.into()).dequantize(length);
        floats
            .and_then(|floats| Ok(floats.as_slice::<f32>()?.to_vec()))
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }

    fn stacked(
        &self,
        parts: &[(String, usize, Order)],
        device: &Device,
        read: &mut u64,
    ) -> std::result::Result<Stacked, Ending> {
        let width = self.shape.width;
        let mut pieces: Vec<(GgmlDType, Vec<u8>, usize)> = Vec::with_capacity(parts.len());
        for (name, rows, order) in parts {
            let extent = self.matrix(name, (*rows, width))?;
            let bytes = order.apply(self.bytes(&extent, read), *rows);
            match pieces.last_mut() {
                Some((dtype, stacked, height)) if *dtype == extent.dtype => {
                    stacked.extend(bytes);
                    *height = height.saturating_add(*rows);
                }
                _ => pieces.push((extent.dtype, bytes, *rows)),
            }
        }
        // Two alike of three would have to be told apart from three unlike ones: stack all or none.
        if pieces.len() > 1 && pieces.len() < parts.len() {
            pieces = self.unstacked(parts, read)?;
        }
        let linear = |(dtype, bytes, rows)| Linear::new(dtype, bytes, (rows, width), device);
        let stacked: Result<Vec<Linear>> = pieces.into_iter().map(linear).collect();
        let stacked = stacked.map_err(|error| Ending::from_candle("loading a layer", &error))?;
        Ok(Stacked { parts: stacked, rows: parts.iter().map(|(_, rows, _)| *rows).collect() })
    }

    fn unstacked(
        &self,
        parts: &[(String, usize, Order)],
        read: &mut u64,
    ) -> std::result::Result<Vec<(GgmlDType, Vec<u8>, usize)>, Ending> {
        let width = self.shape.width;
        let piece = |(name, rows, order): &(String, usize, Order)| {
            let extent = self.matrix(name, (*rows, width))?;
            Ok((extent.dtype, order.apply(self.bytes(&extent, read), *rows), *rows))
        };
        parts.iter().map(piece).collect()
    }

    fn linear(
        &self,
        name: &str,
        dims: (usize, usize),
        device: &Device,
        read: &mut u64,
    ) -> std::result::Result<Linear, Ending> {
        let extent = self.matrix(name, dims)?;
        let bytes = self.bytes(&extent, read);
        Linear::new(extent.dtype, bytes, dims, device)
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }

    fn vector(
        &self,
        name: &str,
        length: usize,
        device: &Device,
    ) -> std::result::Result<Tensor, Ending> {
        Tensor::from_vec(self.floats(name, length)?, length, device)
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }

    /// What position 1 turns each pair of a head by where a layer looks no further than a window.
    fn near_frequencies(&self) -> Vec<f32> {
        let Some(window) = self.shape.window else { return Vec::new() };
        let half = self.shape.head_width / 2;
        let step = -window.rope_base.ln() / to_f32(half);
        (0..half).map(|pair| (to_f32(pair) * step).exp()).collect()
    }

    /// What position 1 turns each pair of a head by. A tensor of factors stretches single
    /// frequencies (Llama 3, Phi 3).
    fn frequencies(&self) -> std::result::Result<Vec<f32>, Ending> {
        let half = self.shape.head_width / 2;
        let by_context = match self.shape.rope_stretch {
            Stretch::Long => "rope_factors_long.weight",
            Stretch::Short | Stretch::ByContext(_) | Stretch::Plain => "rope_factors_short.weight",
        };
        let stretched = match self.perhaps_floats("rope_freqs.weight", half)? {
            Some(stretched) => Some(stretched),
            None => self.perhaps_floats(by_context, half)?,
        };
        let stretched = stretched.unwrap_or_else(|| vec![1.0; half]);
        let step = -self.shape.rope_base.ln() / to_f32(half);
        let frequency = |(pair, stretch): (usize, &f32)| {
            (to_f32(pair) * step).exp() / self.shape.rope_factor / stretch
        };
        Ok(stretched.iter().enumerate().map(frequency).collect())
    }

    fn matrix(&self, name: &str, dims: (usize, usize)) -> std::result::Result<Extent, Ending> {
        let extent = self.extent(name)?;
        if extent.dims == [dims.0, dims.1] {
            return Ok(extent);
        }
        Err(other_shape(name, &extent.dims, &format!("[{}, {}]", dims.0, dims.1)))
    }

    fn extent(&self, name: &str) -> std::result::Result<Extent, Ending> {
        self.header
            .extent(name)?
            .ok_or_else(|| Ending::bad_model(format!("the model lacks the tensor `{name}`")))
    }

    fn bytes(&self, extent: &Extent, read: &mut u64) -> Vec<u8> {
        let bytes = self.header.bytes(extent).to_vec();
        *read = read.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        bytes
    }
}

/// Gives tensors of a layer that are there together, or not at all. Without one of them the text would be
/// wrong.
fn all<T, const N: usize>(
    index: usize,
    names: [&str; N],
    parts: [Option<T>; N],
) -> std::result::Result<Option<[T; N]>, Ending> {
    let at = |is_there: bool| {
        let found = names.iter().zip(&parts).find(|(_, part)| part.is_some() == is_there);
        found.map(|(name, _)| format!("blk.{index}.{name}"))
    };
    if let (Some(there), Some(lacking)) = (at(true), at(false)) {
        return Err(Ending::bad_model(format!("the model has `{there}` and lacks `{lacking}`")));
    }
    let parts: Option<Vec<T>> = parts.into_iter().collect();
    Ok(parts.and_then(|parts| parts.try_into().ok()))
}

impl Order {
    fn apply(self, bytes: Vec<u8>, rows: usize) -> Vec<u8> {
        let Self::Halves { heads } = self else { return bytes };
        let (row, head) = (bytes.len() / rows, rows / heads);
        let mut ordered = Vec::with_capacity(bytes.len());
        for head in bytes.chunks_exact(row.saturating_mul(head)) {
            ordered.extend(head.chunks_exact(row).step_by(2).flatten());
            ordered.extend(head.chunks_exact(row).skip(1).step_by(2).flatten());
        }
        ordered
    }
}

/// Refuses a tensor that is not what the metadata let one expect.
pub(super) fn other_shape(name: &str, dims: &[usize], expected: &str) -> Ending {
    Ending::bad_model(format!("tensor `{name}` has the shape {dims:?}, expected {expected}"))
}

fn wrong_shape(name: &str, extent: &Extent) -> Ending {
    Ending::bad_model(format!("tensor `{name}` has the unexpected shape {:?}", extent.dims))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_without_the_others_is_refused_and_not_left_out() {
        let names = ["attn_q.bias", "attn_k.bias", "attn_v.bias"];
        assert_eq!(all(0, names, [Some(1), Some(2), Some(3)]).unwrap(), Some([1, 2, 3]));
        assert_eq!(all(0, names, [None::<u8>; 3]).unwrap(), None);
        let sentence = "the model has `blk.3.attn_q.bias` and lacks `blk.3.attn_k.bias`";
        let ending = Ending::bad_model(sentence);
        assert_eq!(all(3, names, [Some(1), None, Some(3)]).unwrap_err(), ending);
    }
}
