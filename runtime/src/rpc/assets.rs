//! `Replica.TextAssets`: the files that make tokens of text, piece by piece at the reader's pace.

use std::convert::Infallible;
use std::sync::Arc;

use proto::v1::text_assets_response::Message;
use proto::v1::{TextAsset, TextAssetsHead, TextAssetsPiece, TextAssetsResponse};
use tonic::Status;

use super::stream::Outlet;
use crate::text::{Assets, Text};

/// Of one message.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// Tells all to whoever has not got it yet. The end is a status too, as for every stream: that of success.
pub(super) async fn tell(
    text: Arc<Text>,
    known: Vec<u8>,
    out: Outlet<TextAssetsResponse>,
) -> Result<Infallible, Status> {
    let assets = text.assets();
    out.send(wrap(Message::Head(head(assets)))).await?;
    if known != assets.digest() {
        for (at, file) in assets.files().iter().enumerate() {
            for piece in file.content.chunks(PIECE_BYTES_MAX) {
                let turn = out.turn().await?;
                let piece = TextAssetsPiece { asset: at as u32, content: piece.to_vec() };
                turn.give(wrap(Message::Piece(piece))).await?;
            }
        }
    }
    Err(Status::ok("all is told"))
}

fn head(assets: &Assets) -> TextAssetsHead {
    let told = assets.files().iter().map(|file| TextAsset {
        name: file.name.to_owned(),
        bytes: file.content.len() as u64,
        sha256: file.sha256.to_vec(),
    });
    TextAssetsHead { digest: assets.digest().to_vec(), assets: told.collect() }
}

fn wrap(message: Message) -> TextAssetsResponse {
    TextAssetsResponse { message: Some(message) }
}
