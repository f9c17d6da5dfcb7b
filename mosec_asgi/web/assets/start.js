// The document's address is relative to the page's, so that both may lie below any prefix that a proxy puts in front.
window.ui = SwaggerUIBundle({
  url: "../metadata.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  // The default asks a validator on the internet.
  validatorUrl: null,
});
