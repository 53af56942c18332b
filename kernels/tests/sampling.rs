//! Every backend draws what the shared definition draws.

use base::SplitMix;
use quire_kernels::sample::draw;
use quire_kernels::{History, SampleRow, SamplingParams};

use crate::support::*;

#[test]
fn backends_draw_as_the_definition_does() {
    let (rows, vocab) = (7, 5_000);
    let logits = normal(&mut SplitMix::new(1), rows * vocab);
    let params: Vec<SamplingParams> = (0..rows as u64)
        .map(|i| SamplingParams {
            temperature: [0.0, 0.7, 1.0][i as usize % 3],
            top_p: [1.0, 0.9][i as usize % 2],
            top_k: [0, 40][i as usize / 2 % 2],
            repetition_penalty: 1.1,
            logprobs: Some(3),
            seed: i,
            ..SamplingParams::default()
        })
        .collect();
    let history = History::from_prompt(&[1, 2, 3]);
    let asked: Vec<SampleRow<'_>> = (params.iter().zip(0..))
        .map(|(params, i)| SampleRow {
            params,
            history: &history,
            position: i,
            forced: (i == 5).then_some(77),
        })
        .collect();
    let want: Vec<_> = logits.chunks(vocab).zip(&asked).map(|(l, row)| draw(&mut l.to_vec(), row)).collect();
    assert_eq!(want[5].token, 77);
    for maker in all() {
        let mut b = maker.make();
        let id = filled(&mut *b, &logits, rows);
        let got = step(&mut *b, rows, |b| b.sample(id, &asked));
        assert_eq!(got, want, "{maker:?}");
    }
}
