//! Keys and values of the positions that one sequence has been through.

use candle_core::{DType, Device, Result, Tensor};

use super::shape::Shape;

/// Keys and values of one sequence in all layers, with room for a fixed number of positions.
#[derive(Debug)]
pub(crate) struct Cache {
    host: Vec<HostLayer>,
    device: Vec<DeviceLayer>,
    length: usize,
    capacity: usize,
}

/// Keys and values of one layer on the host, each `capacity` rows of `width` numbers.
#[derive(Debug, Default)]
pub(super) struct HostLayer {
    keys: Vec<f32>,
    values: Vec<f32>,
    width: usize,
}

/// Keys and values of one layer on a GPU, each `1 × capacity × kv_heads × head_width`.
#[derive(Debug)]
pub(super) struct DeviceLayer {
    keys: Tensor,
    values: Tensor,
}

impl Cache {
    /// Makes an empty cache for `host` layers and those of `devices`. On the host its memory is
    /// taken page by page as positions come.
    pub(crate) fn new(
        shape: &Shape,
        capacity: usize,
        host: usize,
        devices: &[Device],
    ) -> Result<Self> {
        let dims = (1, capacity, shape.kv_heads, shape.head_width);
        let device = devices.iter().map(|device| {
            let keys = Tensor::zeros(dims, DType::F32, device)?;
            Ok(DeviceLayer { keys, values: Tensor::zeros(dims, DType::F32, device)? })
        });
        let width = shape.kv_width();
        let numbers = capacity.saturating_mul(width);
        let host = (0..host).map(|_| HostLayer {
            keys: vec![0.0; numbers],
            values: vec![0.0; numbers],
            width,
        });
        Ok(Self {
            host: host.collect(),
            device: device.collect::<Result<_>>()?,
            length: 0,
            capacity,
        })
    }

    /// Makes a cache that only counts.
    pub(crate) fn bare(capacity: usize) -> Self {
        Self { host: Vec::new(), device: Vec::new(), length: 0, capacity }
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

    /// Forgets all, and takes over the first `length` positions of `other`.
    pub(crate) fn copy_from(&mut self, other: &Self, length: usize) -> Result<()> {
        let length = length.min(other.length).min(self.capacity);
        self.length = 0;
        for (to, from) in self.host.iter_mut().zip(&other.host) {
            let (keys, values) = from.upto(length);
            to.store(0, keys, values);
        }
        for (to, from) in self.device.iter().zip(&other.device) {
            if length > 0 {
                to.keys.slice_set(&from.keys.narrow(1, 0, length)?.contiguous()?, 1, 0)?;
                to.values.slice_set(&from.values.narrow(1, 0, length)?.contiguous()?, 1, 0)?;
            }
        }
        self.length = length;
        Ok(())
    }

    pub(super) fn host(&self, index: usize) -> &HostLayer {
        static NONE: HostLayer = HostLayer { keys: Vec::new(), values: Vec::new(), width: 0 };
        self.host.get(index).unwrap_or(&NONE)
    }

    pub(super) fn store_host(&mut self, index: usize, at: usize, keys: &[f32], values: &[f32]) {
        if let Some(layer) = self.host.get_mut(index) {
            layer.store(at, keys, values);
        }
    }

    pub(super) fn device_layers(&self) -> &[DeviceLayer] {
        &self.device
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.length = self.length.saturating_add(count);
    }
}

impl HostLayer {
    /// Stores rows of keys and values from position `at` on.
    pub(super) fn store(&mut self, at: usize, keys: &[f32], values: &[f32]) {
        let start = at.saturating_mul(self.width);
        for (kept, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            if let Some(kept) = kept.get_mut(start..start.saturating_add(new.len())) {
                kept.copy_from_slice(new);
            }
        }
    }

    /// Gives the keys and values of the positions from `start` on, `end` not included.
    pub(super) fn between(&self, start: usize, end: usize) -> (&[f32], &[f32]) {
        let range = start.saturating_mul(self.width)..end.saturating_mul(self.width);
        (
            self.keys.get(range.clone()).unwrap_or_default(),
            self.values.get(range).unwrap_or_default(),
        )
    }

    /// Gives the keys and values of the first `length` positions.
    pub(super) fn upto(&self, length: usize) -> (&[f32], &[f32]) {
        let end = length.saturating_mul(self.width);
        (self.keys.get(..end).unwrap_or_default(), self.values.get(..end).unwrap_or_default())
    }
}

impl DeviceLayer {
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
