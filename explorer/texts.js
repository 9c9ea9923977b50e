// Every word of the page, in English and in Korean. {name} is filled in; elements with data-text="key" are translated
// in place, data-label="key" sets their aria-label.
"use strict";

const TEXTS = {
  en: {
    title: "Inside a vision-language model",
    lead: "Draw a few shapes, ask about them, and follow the picture through a small trained PaliGemma: from pixels to words, boxes and masks. The whole model, {count} parameters, runs in this page. Nothing is sent anywhere.",
    loading: "The model is being read …",
    no_data: "The weights are missing: data.js belongs beside this page. Write the page again with: python -m paligemma explore",
    language: "한국어",
    theme: "Light or dark", copy_link: "Copy link", link_copied: "The link is copied. It holds the picture, the question and what you look at.",
    link_no_photo: "The link is copied. It cannot carry the photograph.",
    skip: "Skip to the answer",

    picture: "1 · The picture",
    picture_how: "How to draw, with pointer and keyboard",
    picture_help: "Drag shapes to move them, pull a corner to resize. With the keyboard: Tab to a shape, arrows move it (with Shift further), + and − resize, [ and ] turn, Delete removes, D sets a copy beside it, Ctrl+Z takes back.",
    drawing: "Drawing with {count} items", add_shape: "Add a {shape}", colour: "Colour", colours: "Colours", shapes: "Shapes",
    pencil: "Pencil", pencil_help: "Draw a line by hand. The model has never seen one: watch what it makes of it.",
    new_scene: "New scene", undo: "Undo", clear: "Empty the picture", remove: "Delete", photo: "Own picture",
    larger: "Larger", smaller: "Smaller", turn: "Turn", scene: "Scene", scene_number: "Scene {number} of the course",
    photo_note: "Your picture “{name}” stays on this computer. This model has seen nothing but flat coloured shapes, so it describes any photograph in those words.",
    line_note: "Lines drawn by hand lie outside the model's little world. What it says about them is a guess.",
    sees: "What the model sees", sees_note: "{size} × {size} pixels, resized as by the package's processor",
    moved: "{name}: {percent} from the left, {percent2} from the top", removed: "{name} removed", added: "{name} added",
    resized: "{name}: now {percent} wide", selected: "{name} selected", undone: "Undone", nothing_to_undo: "There is nothing to undo.",

    ask: "2 · The question", prompt: "Prompt", ask_button: "Ask", examples: "Examples of prompts",
    prompt_tokens: "The prompt as tokens, with their ids", tokens_count: "{image} image tokens and {text} of text",
    task_caption: "caption", task_colour: "colour", task_shape: "shape", task_size: "size", task_count: "how many",
    task_there: "is there", task_where: "where", task_relation: "relation", task_detect: "detect", task_pair: "detect two", task_segment: "segment",

    answer: "3 · The answer", nothing: "(nothing: the model sees no such thing)", thinking: "The model is reading the picture …",
    answered: "Answer: {answer}", speed: "First token after {first} ms, then {rate} tokens a second, on this computer.",
    speed_one: "The answer's one token came after {first} ms.",
    true_scene: "In the picture: {names}.", true_none: "Nothing is in the picture.",
    found_box: "{label}: box from {x1} %, {y1} % to {x2} %, {y2} % (left, top to right, bottom)",
    found_iou: "overlap with the true box {iou} of 1 (IoU)",
    outside: "Token {id} is not among the {count} of the model's embedding table, expected a smaller number: config.json and tokenizer.json do not belong together.",
    stopped: "Stopped after {count} tokens.",

    way: "The way through the model", way_note: "Open a part. Whatever you choose in one part, a patch or a token, is shown in the others.",
    patches: "Patches", patches_short: "The picture is cut into {count} squares; each becomes one token.",
    patches_help: "Choose a patch with the pointer or the arrow keys. Left its pixels; right how similar its vector is to those of all the others.",
    patch_name: "Patch in row {row}, column {column}", patch_pixels: "Its {size} × {size} pixels", similarity: "Similarity to the others",
    after: "Compared", after_embedding: "as it enters the image encoder", after_layer: "after layer {layer} of the image encoder",
    similar_twin: "Patch row {row}, column {column}. Most similar: {list}. Least similar: {least} (cosine of the vectors).",
    place: "row {row}, column {column}",

    sequence: "Sequence", sequence_short: "Image tokens, prompt and answer stand in one row of {count}.",
    sequence_help: "Choose a token. The bars below the tokens show how much it attends to each of them (layer {layer}, head {head}).",
    kind_image: "image", kind_bos: "<bos>", kind_prompt: "prompt", kind_newline: "newline", kind_suffix: "answer", kind_loc: "<loc> token", kind_seg: "<seg> token", kind_eos: "<eos>",
    token_at: "{kind} token {text}, position {position}", strip_label: "All tokens in order",

    mask: "Mask", mask_short: "Who may look at whom: picture and prompt see each other, the answer sees what is before it.",
    mask_help: "Row: the token that looks. Column: the token that is looked at. The chosen token's row is framed.",
    mask_twin: "{token} may look at {image} image tokens, {prompt} tokens of the prompt and {answer} of the answer.",
    mask_hover: "{query} {may} {key}.", may: "may look at", may_not: "may not look at",

    writing: "Token by token", writing_short: "At each step the model gives every one of {count} tokens a probability; the likeliest is written.",
    writing_help: "Choose a token of the answer to see what else could have stood there. Press an alternative to put it there and let the model go on.",
    alternatives: "The five likeliest at step {step}", force: "write it here", forced: "You put in {token}.", as_model: "Back to the model's own answer",

    attention: "Attention", attention_short: "Where each head looked when it chose a token.",
    attention_help: "Rows are layers, columns heads. Each map has its own scale: yellow is where it looks most. The number is the share of its attention to the picture that falls inside the object.",
    view: "Attention of", decoder: "the decoder, for the chosen token", encoder: "the image encoder, for the chosen patch",
    object: "Object", object_auto: "the one being named", no_object: "none", layer: "Layer", head: "Head",
    head_map: "layer {layer}, head {head}", head_label: "Layer {layer}, head {head}: {picture} of its attention to the picture; strongest patch {place}{inside}",
    inside_label: ", {share} of that inside the object",
    attention_twin: "{token}, layer {layer}, head {head}: {picture} of the attention goes to the picture{others}. Strongest patch: {place} with {top}.",
    others: ", most of the rest to {list}", inside_twin: "Inside {name}: {share} of the attention to the picture; its share of the area is {area}. That is {times} times as much.",
    chosen: "Token {text}", chosen_patch: "Patch {place}",

    boxes: "Boxes and masks", boxes_short: "Positions are written as tokens: four for a box, sixteen more for a mask.",
    boxes_none: "Ask for a box or a mask: “detect …” or “segment …”.", boxes_try: "Detect something",
    edge: "{edge}: {token} is {number} of 1023, {percent} of the side", edge_0: "top", edge_1: "left", edge_2: "bottom", edge_3: "right",
    codes: "Its 16 codes, a 4 × 4 grid, row by row:", mask_of: "Mask of {label}, 64 × 64, drawn from 16 codes", mask_iou: "overlap with the true mask {iou} of 1 (IoU)",

    lens: "Logit lens", lens_short: "What would the model say if it ended after an earlier layer?",
    lens_help: "Each column is a token of the answer, each row a layer. The lower the row, the more of the model has been at work; the last row is the answer itself. Before any layer it is mostly the token just read: the head is the embedding table again.",
    lens_layer: "after layer {layer}", lens_start: "before layer 0", lens_caption: "The likeliest token after each layer, with its probability",

    broken: "Break it", broken_short: "Seven faults that the chapters teach. First say what will happen.",
    broken_help: "Choose what you expect to become of the answer “{answer}”: the fault is put in as soon as you have said so.",
    predict_same: "the same words", predict_other: "other words", predict_none: "nothing, or no end",
    happened: "You expected: {expected}. It is: {outcome}.", right: "Well predicted.", wrong: "Look at the maps above: why?",
    loss: "Loss of the whole model's answer (mean negative log probability of its tokens): {before} in the whole model, {after} in the broken one.",
    before: "whole", after_fault: "broken", mend: "Mend the model", mend_one: "Mend", is_broken: "The model is broken on purpose: {names}.",
    fault_no_scale: "Scores are not divided by √d", fault_no_embed_scale: "Text is not multiplied by √D", fault_causal_picture: "The picture is read causally",
    fault_no_newline: "The newline after the prompt is missing", fault_shuffled_positions: "Position embeddings of the patches are shuffled",
    fault_interleaved_rope: "RoPE turns neighbours, not halves", fault_head_off: "One head is switched off",
    why_no_scale: "The softmax gets scores that are √d times too large (chapter 03).", why_no_embed_scale: "The words become small beside the picture (chapter 10).",
    why_causal_picture: "Image tokens see only those before them (chapter 08).", why_no_newline: "Nothing says that the prompt is over (chapter 05).",
    why_shuffled_positions: "Every patch is told that it lies elsewhere (chapter 02).", why_interleaved_rope: "Pairs (2i, 2i + 1) in place of (i, i + d/2) (chapter 07).",
    why_head_off: "Layer {layer}, head {head} gives zeros: the one chosen under Attention (chapter 14).", predict: "Your prediction for “{fault}”",

    other: "Another model", other_short: "Any small PaliGemma in the Hugging Face format.",
    other_help: "Choose or drop the files config.json, model.safetensors and tokenizer.json of a folder: a model that you trained in chapter 13, for instance. From the command line: python -m paligemma explore FOLDER",
    other_button: "Choose files", other_loaded: "{name} is loaded: {image} pixels in {count} patches, {layers} layers of {heads} heads.", other_missing: "{name} is missing among the {count} files: choose config.json, model.safetensors and tokenizer.json together.",
    other_failed: "This model cannot be opened: {message}",
    about: "The JavaScript in model.js is this course's model a second time: the same names in the same order as the Python files. A test runs both on the same pictures and compares token ids, logits and attention.",
  },
  ko: {
    title: "시각-언어 모델 들여다보기",
    lead: "도형을 몇 개 그리고 물어보세요. 학습된 작은 PaliGemma 안에서 그림이 픽셀에서 단어, 상자, 마스크가 되는 과정을 따라갑니다. 매개변수 {count}개의 모델 전체가 이 페이지 안에서 돌아가며, 아무것도 밖으로 보내지 않습니다.",
    loading: "모델을 읽고 있습니다 …",
    no_data: "가중치가 없습니다. data.js가 이 페이지 옆에 있어야 합니다. 다음 명령으로 페이지를 다시 만드세요: python -m paligemma explore",
    language: "English", theme: "밝게 또는 어둡게", copy_link: "링크 복사", link_copied: "링크를 복사했습니다. 그림, 질문, 보고 있는 곳이 모두 들어 있습니다.",
    link_no_photo: "링크를 복사했습니다. 사진은 링크에 담기지 않습니다.",
    skip: "답으로 건너뛰기",

    picture: "1 · 그림",
    picture_how: "그리는 방법 (포인터와 키보드)",
    picture_help: "도형을 끌어서 옮기고, 모서리를 당겨 크기를 바꿉니다. 키보드: Tab으로 도형을 고르고, 화살표로 옮기고(Shift와 함께 더 멀리), + 와 − 로 크기, [ 와 ] 로 회전, Delete로 삭제, D로 복제, Ctrl+Z로 되돌립니다.",
    drawing: "항목 {count}개가 있는 그림", add_shape: "{shape} 추가", colour: "색", colours: "색", shapes: "도형",
    pencil: "연필", pencil_help: "손으로 선을 그립니다. 모델은 선을 본 적이 없습니다. 무엇이라고 하는지 보세요.",
    new_scene: "새 장면", undo: "되돌리기", clear: "그림 비우기", remove: "삭제", photo: "내 그림",
    larger: "크게", smaller: "작게", turn: "회전", scene: "장면", scene_number: "강좌의 장면 {number}",
    photo_note: "그림 “{name}”은(는) 이 컴퓨터에만 있습니다. 이 모델은 단색 도형만 보고 배웠으므로 어떤 사진이든 그 단어들로 설명합니다.",
    line_note: "손으로 그린 선은 모델의 작은 세계 밖에 있습니다. 선에 대한 답은 추측입니다.",
    sees: "모델이 보는 그림", sees_note: "{size} × {size} 픽셀, 패키지의 프로세서와 똑같이 크기를 바꿈",
    moved: "{name}: 왼쪽에서 {percent}, 위에서 {percent2}", removed: "{name} 삭제됨", added: "{name} 추가됨",
    resized: "{name}: 너비 {percent}", selected: "{name} 선택됨", undone: "되돌렸습니다", nothing_to_undo: "되돌릴 것이 없습니다.",

    ask: "2 · 질문", prompt: "프롬프트", ask_button: "묻기", examples: "프롬프트 예시",
    prompt_tokens: "토큰과 번호로 본 프롬프트", tokens_count: "이미지 토큰 {image}개, 글 토큰 {text}개",
    task_caption: "설명", task_colour: "색", task_shape: "모양", task_size: "크기", task_count: "개수",
    task_there: "있는가", task_where: "위치", task_relation: "관계", task_detect: "찾기", task_pair: "두 개 찾기", task_segment: "분할",

    answer: "3 · 답", nothing: "(빈 답: 모델은 그런 것을 보지 못했습니다)", thinking: "모델이 그림을 읽고 있습니다 …",
    answered: "답: {answer}", speed: "첫 토큰까지 {first} ms, 이후 초당 {rate} 토큰 (이 컴퓨터에서).",
    speed_one: "답의 유일한 토큰이 {first} ms 만에 나왔습니다.",
    true_scene: "그림에 있는 것: {names}.", true_none: "그림에 아무것도 없습니다.",
    found_box: "{label}: 상자 {x1} %, {y1} % 에서 {x2} %, {y2} % 까지 (왼쪽, 위에서 오른쪽, 아래)",
    found_iou: "실제 상자와 겹침 {iou} (IoU, 최대 1)",
    outside: "토큰 {id}은(는) 모델의 임베딩 표에 있는 {count}개에 들지 않습니다. config.json과 tokenizer.json이 서로 맞는지 확인하세요.",
    stopped: "토큰 {count}개에서 멈췄습니다.",

    way: "모델을 지나는 길", way_note: "한 부분을 열어 보세요. 한 곳에서 고른 패치나 토큰이 다른 곳에도 보입니다.",
    patches: "패치", patches_short: "그림을 정사각형 {count}개로 자릅니다. 각각이 토큰 하나가 됩니다.",
    patches_help: "포인터나 화살표 키로 패치를 고르세요. 왼쪽은 그 픽셀, 오른쪽은 그 벡터가 다른 패치들과 얼마나 비슷한지 보여 줍니다.",
    patch_name: "{row}행 {column}열 패치", patch_pixels: "픽셀 {size} × {size}", similarity: "다른 패치와의 유사도",
    after: "비교 시점", after_embedding: "이미지 인코더에 들어갈 때", after_layer: "이미지 인코더 {layer}층 뒤",
    similar_twin: "{row}행 {column}열 패치. 가장 비슷한 곳: {list}. 가장 다른 곳: {least} (벡터의 코사인).",
    place: "{row}행 {column}열",

    sequence: "시퀀스", sequence_short: "이미지 토큰, 프롬프트, 답이 한 줄에 {count}개 서 있습니다.",
    sequence_help: "토큰을 고르세요. 토큰 아래의 막대는 그 토큰이 각 토큰에 주는 어텐션입니다 ({layer}층, 헤드 {head}).",
    kind_image: "이미지", kind_bos: "<bos>", kind_prompt: "프롬프트", kind_newline: "줄바꿈", kind_suffix: "답", kind_loc: "<loc> 토큰", kind_seg: "<seg> 토큰", kind_eos: "<eos>",
    token_at: "{kind} 토큰 {text}, 위치 {position}", strip_label: "모든 토큰, 순서대로",

    mask: "마스크", mask_short: "누가 누구를 볼 수 있는가: 그림과 프롬프트는 서로 보고, 답은 앞에 있는 것만 봅니다.",
    mask_help: "행: 보는 토큰. 열: 보이는 토큰. 고른 토큰의 행에 테두리가 있습니다.",
    mask_twin: "{token}: 이미지 토큰 {image}개, 프롬프트 토큰 {prompt}개, 답 토큰 {answer}개를 볼 수 있습니다.",
    mask_hover: "{query} → {key}: {may}.", may: "볼 수 있음", may_not: "볼 수 없음",

    writing: "토큰을 하나씩", writing_short: "매 단계 모델은 토큰 {count}개 모두에 확률을 주고, 가장 높은 것을 씁니다.",
    writing_help: "답의 토큰을 고르면 그 자리에 올 수 있던 다른 토큰이 보입니다. 다른 후보를 누르면 그것을 쓰고 모델이 이어 갑니다.",
    alternatives: "{step}단계의 상위 다섯 후보", force: "여기에 쓰기", forced: "{token}을(를) 넣었습니다.", as_model: "모델의 원래 답으로",

    attention: "어텐션", attention_short: "토큰을 고를 때 각 헤드가 본 곳.",
    attention_help: "행은 층, 열은 헤드입니다. 지도마다 눈금이 다르며, 노란 곳을 가장 많이 봅니다. 숫자는 그림으로 가는 어텐션 가운데 물체 안에 들어가는 비율입니다.",
    view: "어텐션", decoder: "디코더, 고른 토큰", encoder: "이미지 인코더, 고른 패치",
    object: "물체", object_auto: "지금 말하는 물체", no_object: "없음", layer: "층", head: "헤드",
    head_map: "{layer}층, 헤드 {head}", head_label: "{layer}층, 헤드 {head}: 어텐션의 {picture}가 그림으로 감, 가장 강한 패치 {place}{inside}",
    inside_label: ", 그중 물체 안 {share}",
    attention_twin: "{token}, {layer}층, 헤드 {head}: 어텐션의 {picture}가 그림으로 갑니다{others}. 가장 강한 패치: {place}, {top}.",
    others: ", 나머지는 주로 {list}", inside_twin: "{name} 안: 그림으로 가는 어텐션의 {share}. 넓이의 비율은 {area}이므로 {times}배입니다.",
    chosen: "토큰 {text}", chosen_patch: "패치 {place}",

    boxes: "상자와 마스크", boxes_short: "위치도 토큰으로 씁니다. 상자는 네 개, 마스크는 열여섯 개가 더 있습니다.",
    boxes_none: "상자나 마스크를 물어보세요: “detect …” 또는 “segment …”.", boxes_try: "찾아보기",
    edge: "{edge}: {token}은 1023 가운데 {number}, 변의 {percent}", edge_0: "위", edge_1: "왼쪽", edge_2: "아래", edge_3: "오른쪽",
    codes: "4 × 4 격자의 코드 16개, 한 행씩:", mask_of: "{label}의 마스크, 64 × 64, 코드 16개로 그림", mask_iou: "실제 마스크와 겹침 {iou} (IoU, 최대 1)",

    lens: "로짓 렌즈", lens_short: "모델이 더 앞의 층에서 끝난다면 무엇이라고 할까요?",
    lens_help: "열은 답의 토큰, 행은 층입니다. 아래로 갈수록 더 많은 층이 일했고, 마지막 행이 답입니다. 어느 층도 거치기 전에는 대개 방금 읽은 토큰이 나옵니다. 출력층이 임베딩 표와 같기 때문입니다.",
    lens_layer: "{layer}층 뒤", lens_start: "0층 앞", lens_caption: "층마다 가장 확률이 높은 토큰과 그 확률",

    broken: "고장 내기", broken_short: "강좌에서 배우는 일곱 가지 실수. 무슨 일이 일어날지 먼저 말해 보세요.",
    broken_help: "답 “{answer}”이(가) 어떻게 될지 골라 실수를 고르세요. 고르는 순간 고장이 납니다.",
    predict_same: "같은 말", predict_other: "다른 말", predict_none: "빈 답이거나 끝나지 않음",
    happened: "예상: {expected}. 결과: {outcome}.", right: "맞았습니다.", wrong: "위의 지도를 보세요. 왜 그럴까요?",
    loss: "온전한 모델이 쓴 답의 손실(토큰의 음의 로그 확률 평균): 온전한 모델 {before}, 고장 난 모델 {after}.",
    before: "온전한 모델", after_fault: "고장 난 모델", mend: "모델 고치기", mend_one: "고치기", is_broken: "모델을 일부러 고장 냈습니다: {names}.",
    fault_no_scale: "점수를 √d로 나누지 않음", fault_no_embed_scale: "글에 √D를 곱하지 않음", fault_causal_picture: "그림을 인과적으로 읽음",
    fault_no_newline: "프롬프트 뒤의 줄바꿈이 없음", fault_shuffled_positions: "패치의 위치 임베딩을 뒤섞음",
    fault_interleaved_rope: "RoPE가 반쪽이 아니라 이웃을 돌림", fault_head_off: "헤드 하나를 끔",
    why_no_scale: "소프트맥스에 √d배 큰 점수가 들어갑니다 (03장).", why_no_embed_scale: "단어가 그림에 비해 작아집니다 (10장).",
    why_causal_picture: "이미지 토큰이 앞의 것만 봅니다 (08장).", why_no_newline: "프롬프트가 끝났다는 표시가 없습니다 (05장).",
    why_shuffled_positions: "모든 패치가 다른 곳에 있다고 듣습니다 (02장).", why_interleaved_rope: "(i, i + d/2) 대신 (2i, 2i + 1)을 짝짓습니다 (07장).",
    why_head_off: "어텐션에서 고른 {layer}층 헤드 {head}이(가) 0을 냅니다 (14장).", predict: "“{fault}”에 대한 예상",

    other: "다른 모델", other_short: "Hugging Face 형식의 작은 PaliGemma라면 무엇이든.",
    other_help: "폴더의 config.json, model.safetensors, tokenizer.json을 고르거나 끌어다 놓으세요. 예: 13장에서 학습한 모델. 명령줄: python -m paligemma explore FOLDER",
    other_button: "파일 고르기", other_loaded: "{name}을(를) 읽었습니다: {image} 픽셀, 패치 {count}개, {layers}층, 헤드 {heads}개.", other_missing: "파일 {count}개 가운데 {name}이(가) 없습니다. config.json, model.safetensors, tokenizer.json을 함께 고르세요.",
    other_failed: "이 모델을 열 수 없습니다: {message}",
    about: "model.js의 자바스크립트는 이 강좌의 모델을 다시 쓴 것입니다. 이름과 순서가 파이썬 파일과 같습니다. 시험은 같은 그림에서 두 모델의 토큰 번호, 로짓, 어텐션을 비교합니다.",
  },
};

let language = "en";

/** The text of this key in the page's language, with {names} filled in. */
function t(key, values = {}) {
  const text = TEXTS[language][key] ?? TEXTS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** A word of the little world in the page's language (prompts stay English: the model was trained so). */
function word(english) {
  return language === "ko" ? english.split(" ").map((part) => WORLD.korean[part] ?? part).join(" ") : english;
}
