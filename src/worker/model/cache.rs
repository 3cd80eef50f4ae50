//! Keys and values of the positions that one sequence has been through.

use candle_core::{DType, Device, Result, Tensor};

use super::shape::Shape;

/// Keys and values of one sequence in all layers, with room for a fixed number of positions.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<LayerCache>,
    length: usize,
    capacity: usize,
}

/// Keys and values of one layer, each `1 × capacity × kv_heads × head_width`.
#[derive(Debug)]
pub(super) struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl Cache {
    /// Makes an empty cache. On a CPU its memory is taken page by page as positions come.
    pub(crate) fn new(shape: &Shape, capacity: usize, devices: &[Device]) -> Result<Self> {
        let dims = (1, capacity, shape.kv_heads, shape.head_width);
        let layers = devices
            .iter()
            .map(|device| {
                let keys = Tensor::zeros(dims, DType::F32, device)?;
                Ok(LayerCache { keys, values: Tensor::zeros(dims, DType::F32, device)? })
            })
            .collect::<Result<_>>()?;
        Ok(Self { layers, length: 0, capacity })
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all positions from `length` on.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    pub(super) fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.length = self.length.saturating_add(count);
    }
}

impl LayerCache {
    /// Stores the keys and values of the positions from `at` on, and gives all up to their end.
    pub(super) fn store(
        &self,
        at: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let end = at.saturating_add(keys.dim(1)?);
        self.keys.slice_set(keys, 1, at)?;
        self.values.slice_set(values, 1, at)?;
        Ok((self.keys.narrow(1, 0, end)?, self.values.narrow(1, 0, end)?))
    }
}
