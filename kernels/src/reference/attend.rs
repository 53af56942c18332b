//! Attention of one row as the textbook writes it: all scores, one softmax, one weighted sum.

use super::pool::Pool;
use crate::AttentionShape;

/// The output of one query row (`q_cols` wide) over the tokens it sees.
pub(super) fn row(
    q: &[f64],
    position: usize,
    pages: &[u32],
    pool: &Pool,
    layer: usize,
    shape: &AttentionShape,
) -> Vec<f64> {
    let group = shape.heads / shape.kv_heads;
    let page_tokens = pool.shape().page_tokens;
    let visible = || shape.first_visible(position)..position + 1;
    let kv = |token: usize, head: usize| {
        pool.kv(pages[token / page_tokens] as usize, layer, head / group, token % page_tokens)
    };
    let mut out = Vec::with_capacity(q.len());
    for (head, q) in q.chunks_exact(shape.head_dim).enumerate() {
        let scores: Vec<f64> = visible().map(|t| dot(q, kv(t, head).0) * f64::from(shape.scale)).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut o = vec![0.0; shape.head_dim];
        for (t, score) in visible().zip(&scores) {
            let p = (score - max).exp() / sum;
            o.iter_mut().zip(kv(t, head).1).for_each(|(o, v)| *o += p * v);
        }
        out.extend(o);
    }
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
