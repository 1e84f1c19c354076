"use strict";
document.documentElement.classList.add("script");

// Sliders: both pictures are taken from the card, so that the page holds each picture once.
for (const compare of document.querySelectorAll(".compare")) {
  const pictures = compare.parentElement.querySelectorAll(".pictures img");
  const stage = compare.querySelector(".stage");
  const [rebuilt, original] = stage.querySelectorAll("img");
  const range = compare.querySelector("input");
  const arm = compare.querySelector("select");
  const cut = () => {
    stage.style.setProperty("--cut", range.value + "%");
    range.setAttribute("aria-valuetext", range.value + " % original");
  };
  const choose = () => { rebuilt.src = pictures[Number(arm.value)].src; };
  const drag = (event) => {
    if (event.buttons !== 1) return;
    const box = stage.getBoundingClientRect();
    range.value = Math.round(100 * (event.clientX - box.left) / box.width);
    cut();
  };
  original.src = pictures[0].src;
  range.addEventListener("input", cut);
  arm.addEventListener("change", choose);
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  cut();
  choose();
}

// Selectors: a card is shown when it fits every choice made.
for (const form of document.querySelectorAll("form.selectors")) {
  const cards = document.querySelectorAll("#" + form.dataset.cards + " > .card");
  const choices = form.querySelectorAll("select");
  const show = () => {
    let shown = 0;
    for (const card of cards) {
      card.hidden = Array.from(choices).some(
        (choice) => choice.value && card.dataset[choice.dataset.key] !== choice.value
      );
      if (!card.hidden) shown += 1;
    }
    form.querySelector("output").textContent = shown + " of " + cards.length + " images shown";
  };
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
}
