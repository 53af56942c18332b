//! Drawing tokens on the device, and on the host what the kernels do not draw.
//!
//! Parameters and edits go up, one record a row comes back; a row of logits is downloaded only for requests
//! that the kernels refuse (see [`supports`]). Which side draws does not show: both give the same token.

use super::driver::{DevicePtr, Driver, Memory};
use super::memory::{Buffer, DeviceArray};
use super::params::sample::{
    SCRATCH_BYTES, SampleEdit, SampleOut, SampleParams, SampleRowParams, VOCAB_END, prepare, sampled,
    supports,
};
use crate::{History, KernelError, Precision, SampleRow, Sampled, SamplingParams, sample};

/// Edits of a step (penalties, biases, banned tokens); rows beyond are drawn on the host.
const EDITS_MAX: usize = 1 << 18;

pub(super) struct Sampler {
    rows: DeviceArray<SampleRowParams>,
    edits: DeviceArray<SampleEdit>,
    undo: DevicePtr,
    scratch: DevicePtr,
    out: DeviceArray<SampleOut>,
    /// Stands in for a row that the host draws.
    neutral: SamplingParams,
    nothing: History,
}

impl Sampler {
    pub fn new(memory: &dyn Memory, rows_max: usize) -> Result<Self, KernelError> {
        let neutral = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        Ok(Self {
            rows: DeviceArray::new(memory, rows_max, "drawing")?,
            edits: DeviceArray::new(memory, EDITS_MAX, "drawing")?,
            undo: memory.alloc(EDITS_MAX * size_of::<f32>(), "drawing")?,
            scratch: memory.alloc(rows_max * SCRATCH_BYTES, "drawing")?,
            out: DeviceArray::new(memory, rows_max, "drawing")?,
            neutral,
            nothing: History::default(),
        })
    }

    /// One token for each row of `logits`; `live` is the device word that counts them.
    pub fn draw(
        &mut self,
        driver: &dyn Driver,
        logits: &Buffer,
        live: DevicePtr,
        rows: &[SampleRow<'_>],
    ) -> Vec<Sampled> {
        if !logits.cols.is_multiple_of(4) || logits.cols >= VOCAB_END {
            return (0..rows.len()).map(|i| on_host(driver, logits, i, &rows[i])).collect();
        }
        let mut edits = Vec::new();
        let mut by_host = Vec::new();
        let wants: Vec<SampleRowParams> = (rows.iter().enumerate())
            .map(|(i, row)| {
                let before = edits.len();
                if supports(row.params) {
                    let wants = prepare(row, logits.cols, &mut edits);
                    if edits.len() <= EDITS_MAX {
                        return wants;
                    }
                    edits.truncate(before);
                }
                by_host.push((i, on_host(driver, logits, i, row)));
                self.neutral_row(row.position, logits.cols, &mut edits)
            })
            .collect();
        let mut drawn = self.launch(driver, logits, live, rows, &wants, &edits);
        by_host.into_iter().for_each(|(i, sampled)| drawn[i] = sampled);
        drawn
    }

    fn neutral_row(&self, position: u64, vocab: usize, edits: &mut Vec<SampleEdit>) -> SampleRowParams {
        let row = SampleRow { params: &self.neutral, history: &self.nothing, position, forced: None };
        prepare(&row, vocab, edits)
    }

    fn launch(
        &self,
        driver: &dyn Driver,
        logits: &Buffer,
        live: DevicePtr,
        rows: &[SampleRow<'_>],
        wants: &[SampleRowParams],
        edits: &[SampleEdit],
    ) -> Vec<Sampled> {
        self.rows.put(driver, wants);
        self.edits.put(driver, edits);
        let params = SampleParams {
            logits: logits.expect(Precision::Full),
            rows: self.rows.at(),
            edits: self.edits.at(),
            undo: self.undo,
            scratch: self.scratch,
            out: self.out.at(),
            rows_live: live,
            vocab: logits.cols as u32,
            stride: logits.cols as u32,
        };
        params.launches(rows.len() as u32).iter().for_each(|launch| driver.launch(launch));
        let out = self.out.get(driver, rows.len());
        out.iter().zip(rows).map(|(out, row)| sampled(out, row)).collect()
    }
}

fn on_host(driver: &dyn Driver, logits: &Buffer, i: usize, row: &SampleRow<'_>) -> Sampled {
    let mut values = vec![0.0f32; logits.cols];
    let at = logits.expect(Precision::Full).plus(i * logits.cols * size_of::<f32>());
    driver.download(at, bytemuck::cast_slice_mut(&mut values));
    sample::draw(&mut values, row)
}
